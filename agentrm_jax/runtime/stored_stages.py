"""Finished stages in a bucket: one host publishes the folder of a stage, the others fetch it.

    BUCKET/configurations/STAGE        the sha256 of what the stage depends on
    BUCKET/finished/STAGE/ATTEMPT/     the files of the folder
    BUCKET/finished/STAGE.json         the list of them; whoever creates it first has published

A folder is fetched under another name and compared with the checksums of the list before it takes
its place, so that it is there as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Mapping
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.core.text import printable
from agentrm_jax.runtime.buckets import FIELD, Bucket
from agentrm_jax.runtime.manifests import sha256
from agentrm_jax.runtime.run_directory import SECONDS_FILE, STAGE_FILE
from agentrm_jax.runtime.run_paths import CHECKPOINTS

_LOOK_SECONDS = 2.0


class StoredStage:
    """The folder of a stage, here and in a bucket.

    Args:
      bucket: The bucket of the run.
      name: The name of the stage.
      folder: The folder of the stage on this host.
    """

    def __init__(self, bucket: Bucket, name: str, folder: pathlib.Path) -> None:
        self._bucket, self._name, self._folder = bucket, name, folder
        self._list_key = f"finished/{name}.json"
        self._looked, self._published = -float("inf"), False

    def check_configuration(self, depends_on: Mapping[str, Any]) -> None:
        """Refuses a bucket that holds the stage of another configuration.

        Args:
          depends_on: The part of the configuration that decides what the stage makes.

        Raises:
          UserError: Another host works on it, or worked, with other values.
        """
        text = json_text(dict(depends_on), sort_keys=True)
        own = hashlib.sha256(text.encode()).hexdigest().encode()
        key = f"configurations/{self._name}"
        if not self._bucket.create(key, own) and self._bucket.read(key) != own:
            raise UserError(
                f"{FIELD} {self._bucket.url}: holds {self._name} of another configuration; choose "
                "another PREFIX, or give all hosts the same configuration and version"
            )

    def published(self) -> bool:
        """Returns whether a host has published the stage; asks every two seconds at most."""
        if not self._published and time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._published = self._bucket.read(self._list_key) is not None
            self._looked = time.monotonic()
        return self._published

    def synchronize(self) -> None:
        """Makes the folder the published one, or publishes it if it has ended here first.

        Raises:
          UserError: A file differs from its checksum, or the folder is a link to another run whose
            files differ.
        """
        files = self._listed()
        if files is None and (self._folder / STAGE_FILE).is_file():
            self._publish()
            files = self._listed()
        if files is None:
            return
        own = self._folder / STAGE_FILE  # it holds the checksums of the others
        if own.is_file() and sha256(own) == files[STAGE_FILE]["sha256"]:
            return
        if self._folder.is_symlink():
            raise UserError(
                f"{self._folder}: is linked to another run, but {FIELD} {self._bucket.url} holds "
                f"another {self._name}; remove the link to fetch that, or choose another PREFIX"
            )
        self._fetch(files)

    def _listed(self) -> dict[str, dict[str, str]] | None:
        """The object and the sha256 of each published file, by name; None before the end."""
        content = self._bucket.read(self._list_key)
        if content is None:
            return None
        try:
            found = {
                str(name): {"object": str(file["object"]), "sha256": str(file["sha256"])}
                for name, file in parse_json(content)["files"].items()
            }
            sound = STAGE_FILE in found and all(map(_is_inside, found))
        except (ValueError, TypeError, KeyError, AttributeError):
            sound, found = False, {}
        if not sound:
            raise UserError(
                f"{self._bucket.url}/{self._list_key}: is not a list of agentrm; delete it"
            )
        return found

    def _publish(self) -> None:
        attempt, files = f"finished/{self._name}/{uuid.uuid4().hex}", dict[str, dict[str, str]]()
        for path in sorted(self._folder.rglob("*")):
            inner = path.relative_to(self._folder)
            if not path.is_file() or _is_private(inner):
                continue
            key = f"{attempt}/{len(files):06d}"
            self._bucket.upload(key, path)
            files[inner.as_posix()] = {"object": key, "sha256": sha256(path)}
        self._bucket.create(self._list_key, json_text({"files": files}).encode())

    def _fetch(self, files: Mapping[str, Mapping[str, str]]) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        aside = self._folder.parent / f".{self._folder.name}.{uuid.uuid4().hex}.tmp"
        fetched, before = aside / "fetched", aside / "before"
        try:
            for name, file in files.items():
                target, own = fetched / name, self._folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if own.is_file() and sha256(own) == file["sha256"]:
                    shutil.copy2(own, target)
                    continue
                self._bucket.download(file["object"], target)
                if sha256(target) != file["sha256"]:
                    raise UserError(
                        f"{self._bucket.url}/{file['object']}: differs from its sha256 "
                        f"({printable(name)} of {self._name}); delete {self._list_key} to publish "
                        f"{self._name} again from a host that has it"
                    )
            if self._folder.exists():
                os.replace(self._folder, before)
            os.replace(fetched, self._folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _is_private(path: pathlib.Path) -> bool:
    """Whether a file is of the work on a stage, not of its result."""
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.parts[0] == CHECKPOINTS or path.as_posix() == SECONDS_FILE


def _is_inside(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
