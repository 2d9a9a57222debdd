"""AgentBoard's movie tools on TMDB (The Movie Database)."""

from __future__ import annotations

import dataclasses
import os
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrm_jax.envs.tools.calls import Call, Tool
from agentrm_jax.envs.tools.episode import Result
from agentrm_jax.envs.tools.final import final
from agentrm_jax.envs.tools.http import Service, mode

URL = "https://api.themoviedb.org/3"
KEY_VARIABLE = "MOVIE_KEY"  # as in AgentBoard

TOOLS = (
    Tool("get_search_movie", ("movie_name",), "the id of a movie, and what it is about."),
    Tool("get_movie_details", ("movie_id",), "budget, genres, revenue, rating, release date."),
    Tool("get_movie_production_companies", ("movie_id",), "the companies that produced it."),
    Tool("get_movie_production_countries", ("movie_id",), "the countries where it was produced."),
    Tool("get_movie_cast", ("movie_id",), "the first 10 of the cast with their roles."),
    Tool("get_movie_crew", ("movie_id",), "directors, producers, writers and some others."),
    Tool("get_movie_keywords", ("movie_id",), "its keywords."),
    Tool("get_search_person", ("person_name",), "the id of a person."),
    Tool("get_person_details", ("person_id",), "biography, birthday, place of birth."),
    Tool("get_person_cast", ("person_id",), "the first 10 roles of a person."),
    Tool("get_person_crew", ("person_id",), "the first 10 jobs of a person in crews."),
    Tool("get_person_external_ids", ("person_id",), "ids elsewhere: IMDb and others."),
    Tool("get_movie_alternative_titles", ("movie_id",), "its other titles."),
    Tool("get_movie_translation", ("movie_id",), "its description in some languages."),
    Tool("check_valid_actions", (), "the names of all tools."),
    Tool("finish", ("answer",), "ends with the answer."),
)
_JOBS = ("Director", "Producer", "Writer")
_COUNTRIES = ("NL", "CN", "US", "DE")
_NOT_COUNTED = (
    "overview", "biography", "vote_average", "genres", "revenue", "budget", "release_date"
)  # fmt: skip


def missing() -> str | None:
    """Why TMDB can answer nothing, in one line."""
    if reason := _service().missing():
        return reason
    if mode() == "record" and not os.environ.get(KEY_VARIABLE):
        return f"{KEY_VARIABLE}: not set; recording movies needs a TMDB API read access token"
    return None


def _service() -> Service:
    key = os.environ.get(KEY_VARIABLE, "")
    return Service("movie", headers=(("Authorization", f"Bearer {key}"),) if key else ())


@dataclasses.dataclass(frozen=True, slots=True)
class MovieWorld:
    """Movies have no state."""

    @property
    def tools(self) -> Sequence[Tool]:
        return TOOLS

    def call(self, call: Call) -> tuple[Result, MovieWorld]:
        given = call.arguments
        if call.name in ("get_search_movie", "get_search_person"):
            kind = call.name.removeprefix("get_search_")
            return _search(kind, given[f"{kind}_name"]), self
        if call.name not in _LOOK_UPS:
            return final(call, TOOLS), self
        kind, page, read = _LOOK_UPS[call.name]
        key = urllib.parse.quote(str(given[f"{kind}_id"]), safe="")
        reply = _service().get(f"{URL}/{kind}/{key}{page}", {})
        return _answer(read(reply.json())) if reply.ok else Result(reply.text, valid=False), self


def _search(kind: str, name: Any) -> Result:
    parameters = {"query": name, "include_adult": "false", "language": "en-US", "page": "1"}
    reply = _service().get(f"{URL}/search/{kind}", parameters)
    if not reply.ok:
        return Result(reply.text, valid=False)
    results = reply.json()["results"]
    if kind == "person":
        return _answer(_some(results[:1], "id", "name"))
    return _answer([_fields(results[0], "id", "overview", "title")])


def _answer(value: Any) -> Result:
    """Returns the result of a call; goals leave out its details that change."""
    reached = value
    if isinstance(value, list):
        reached = [_counted(item) if isinstance(item, dict) else item for item in value]
    elif isinstance(value, dict):
        reached = _counted(value)
    return Result(value, reached=reached)


def _counted(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in _NOT_COUNTED}


def _fields(item: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: item[name] for name in names}


def _some(items: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [_fields(item, *names) for item in items]


def _crew(data: Mapping[str, Any]) -> dict[str, Any]:
    """Directors, producers and writers, filled up to ten with people not yet named."""
    chosen = [one for one in data["crew"] if one["job"] in _JOBS]
    named = {one["id"] for one in chosen}
    if len(chosen) < 10:
        for one in data["crew"]:
            if one["id"] not in named:
                chosen.append(one)
            if len(chosen) == 10:
                break
    return {"crew": _some(chosen, "id", "name", "job")}


def _translations(data: Mapping[str, Any]) -> dict[str, Any]:
    kept = [one for one in data["translations"] if one["iso_3166_1"] in _COUNTRIES]
    for one in kept:
        one["data"] = {key: value for key, value in one["data"].items() if key != "title"}
    return {**data, "translations": kept}


# Of each tool: what the id is of, the page below it, and what is read there.
_LOOK_UPS: Mapping[str, tuple[str, str, Callable[[Any], Any]]] = {
    "get_movie_details": (
        "movie",
        "",
        lambda data: _fields(
            data, "title", "budget", "genres", "revenue", "vote_average", "release_date"
        ),
    ),
    "get_movie_production_companies": (
        "movie", "", lambda data: _fields(data, "production_companies")),
    "get_movie_production_countries": (
        "movie", "", lambda data: _fields(data, "production_countries")),
    "get_movie_cast": (
        "movie", "/credits",
        lambda data: {"cast": _some(data["cast"][:10], "id", "name", "character")}),
    "get_movie_crew": ("movie", "/credits", _crew),
    "get_movie_keywords": (
        "movie", "/keywords",
        lambda data: {"keywords": [keyword["name"] for keyword in data["keywords"]]}),
    "get_person_details": (
        "person", "",
        lambda data: _fields(data, "name", "biography", "birthday", "place_of_birth")),
    "get_person_cast": (
        "person", "/movie_credits",
        lambda data: {"cast": _some(data["cast"][:10], "id", "title", "character")}),
    "get_person_crew": (
        "person", "/movie_credits",
        lambda data: {"crew": _some(data["crew"][:10], "id", "title", "job")}),
    "get_person_external_ids": (
        "person", "/external_ids",
        lambda data: _fields(data, "imdb_id", "facebook_id", "instagram_id", "twitter_id")),
    "get_movie_alternative_titles": ("movie", "/alternative_titles", lambda data: data),
    "get_movie_translation": ("movie", "/translations", _translations),
}  # fmt: skip
