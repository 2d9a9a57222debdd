"""The fields of a JobSet that our template uses, with their types and values.

Written by hand from the documentation of JobSet (v1alpha2) and of Kubernetes' Job (batch/v1) and
Pod; a field that is not here is refused, so that a mistyped one is found. The whole schema of
JobSet accepted the same manifests once (`dev/LOG.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class OneOf(tuple):
    """The values that a field may have."""


class MapOf(tuple):
    """The type of the values of a map with free keys."""


NAME = str
_METADATA = {"name": NAME, "labels": MapOf([str]), "annotations": MapOf([str])}
_CONTAINER = {
    "name": NAME,
    "image": str,
    "command": [str],
    "args": [str],
    "resources": {"limits": MapOf([int])},
    "volumeMounts": [{"name": NAME, "mountPath": str}],
}
_POD = {
    "restartPolicy": OneOf(["Never", "OnFailure"]),
    "terminationGracePeriodSeconds": int,
    "nodeSelector": MapOf([str]),
    "containers": [_CONTAINER],
    "volumes": [
        {
            "name": NAME,
            "configMap": {"name": NAME},
            "persistentVolumeClaim": {"claimName": NAME},
        }
    ],
}
_POD_FAILURE_RULE = {
    "action": OneOf(["FailJob", "FailIndex", "Ignore", "Count"]),
    "onExitCodes": {"containerName": NAME, "operator": OneOf(["In", "NotIn"]), "values": [int]},
    "onPodConditions": [{"type": str, "status": OneOf(["True", "False", "Unknown"])}],
}
_JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": OneOf(["Indexed", "NonIndexed"]),
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [_POD_FAILURE_RULE]},
    "template": {"spec": _POD},
}
_FAILURE_RULE = {
    "name": NAME,
    "action": OneOf(["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]),
    "onJobFailureReasons": [
        OneOf(["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "PodFailurePolicy"])
    ],
    "targetReplicatedJobs": [NAME],
}
JOBSET = {
    "apiVersion": OneOf(["jobset.x-k8s.io/v1alpha2"]),
    "kind": OneOf(["JobSet"]),
    "metadata": _METADATA,
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [_FAILURE_RULE]},
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool},
        "replicatedJobs": [{"name": NAME, "replicas": int, "template": {"spec": _JOB}}],
    },
}


def mistakes(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """Yields the places at which a value differs from a schema."""
    if isinstance(schema, OneOf):
        if value not in schema:
            yield f"{where}: {value!r} is not one of {', '.join(schema)}"
    elif isinstance(schema, MapOf):
        if not isinstance(value, dict):
            yield f"{where}: is no map"
            return
        for key, inner in value.items():
            yield from mistakes(inner, schema[0], f"{where}.{key}")
    elif isinstance(schema, dict):
        if not isinstance(value, dict):
            yield f"{where}: is no map"
            return
        for key, inner in value.items():
            if key not in schema:
                yield f"{where}.{key}: is unknown"
            else:
                yield from mistakes(inner, schema[key], f"{where}.{key}")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{where}: is no list"
            return
        for number, inner in enumerate(value):
            yield from mistakes(inner, schema[0], f"{where}[{number}]")
    elif not isinstance(value, schema) or (schema is int and isinstance(value, bool)):
        yield f"{where}: {value!r} is no {schema.__name__}"
