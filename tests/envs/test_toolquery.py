"""The family of queries: tasks, the two web services (a local server in their formats), graphs."""

import dataclasses
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Task
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.tools import academia_graph, movie_world, weather_world
from agentrm_jax.envs.tools import http as tool_http
from agentrm_jax.envs.tools.http import NotRecordedError, Service, ServiceError
from agentrm_jax.envs.tools.toolquery import ToolQuery

FAMILY = ToolQuery()
REAL = os.environ.get("AGENTRM_DATA", "")

PLACE = {"id": 7, "name": "Springfield", "latitude": 42.1, "longitude": -72.5, "elevation": 21.0,
         "feature_code": "PPL", "country_code": "US", "country": "United States", "admin1": "MA",
         "admin1_id": 3, "country_id": 9, "timezone": "x", "population": 1}  # fmt: skip
MOVIE = {"id": 11, "title": "The Gull", "budget": 5, "genres": [{"id": 1, "name": "Drama"}],
         "revenue": 9, "vote_average": 7.5, "release_date": "2001-02-03", "runtime": 99,
         "production_companies": [{"id": 2, "name": "Sea"}],
         "production_countries": [{"iso_3166_1": "NO", "name": "Norway"}]}  # fmt: skip


def crew(number, job):
    return {"id": number, "name": f"N{number}", "job": job, "department": "x"}


CREDITS = {
    "cast": [{"id": n, "name": f"C{n}", "character": f"R{n}", "order": n} for n in range(12)],
    "crew": [crew(1, "Editor"), crew(2, "Director"), crew(2, "Editor"), crew(3, "Writer")],
}


def archive(query):
    """As open-meteo's archive answers."""
    head = {"latitude": 42.13, "longitude": -72.49, "generationtime_ms": 0.1, "timezone": "GMT",
            "utc_offset_seconds": 0, "timezone_abbreviation": "GMT", "elevation": 20.0}  # fmt: skip
    names = query["daily"].split(",")
    units = {"time": "iso8601", **dict.fromkeys(names, "°C")}
    daily = {"time": [query["start_date"]], **{name: [len(name) / 2] for name in names}}
    return {**head, "daily_units": units, "daily": daily}


def air(query):
    times = [f"{query['start_date']}T{hour:02}:00" for hour in range(24)]
    return {"latitude": 42.0, "longitude": -72.0, "generationtime_ms": 1, "elevation": 1,
            "hourly_units": {"time": "iso8601", "european_aqi_pm2_5": "EAQI"},
            "hourly": {"time": times, "european_aqi_pm2_5": list(range(24))}}  # fmt: skip


PAGES = {
    "/archive": archive,
    "/search": lambda q: {"results": [PLACE], "generationtime_ms": 1}
    if q["name"] == "Springfield"
    else {"generationtime_ms": 1},
    "/air-quality": air,
    "/elevation": lambda q: {"elevation": [38.0]},
    "/search/movie": lambda q: {"results": [{**MOVIE, "overview": "Birds."}] if q["query"] else []},
    "/search/person": lambda q: {"results": []},
    "/movie/11": lambda q: MOVIE,
    "/movie/11/credits": lambda q: CREDITS,
    "/movie/11/keywords": lambda q: {"id": 11, "keywords": [{"id": 1, "name": "sea"}]},
    "/movie/11/alternative_titles": lambda q: {"id": 11, "titles": []},
    "/movie/11/translations": lambda q: {"id": 11, "translations": [
        {"iso_3166_1": "DE", "name": "Deutsch", "data": {"title": "x", "overview": "V"}},
        {"iso_3166_1": "FR", "name": "F", "data": {"title": "y", "overview": "O"}}]},
    "/person/5": lambda q: {"id": 5, "name": "P", "biography": "b", "birthday": None,
                            "place_of_birth": "Oslo", "gender": 1},
    "/person/5/movie_credits": lambda q: {
        "cast": [{"id": 11, "title": "The Gull", "character": "Gull", "order": 1}],
        "crew": [{"id": 11, "title": "The Gull", "job": "Writer", "department": "x"}]},
    "/person/5/external_ids": lambda q: {"id": 5, "imdb_id": "nm5", "facebook_id": None,
                                         "instagram_id": None, "twitter_id": "p"},
}  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.server.asked.append((path, given, self.headers.get("Authorization")))
        status, body = 404, {"status_code": 34, "status_message": "could not be found."}
        if path == "/busy":
            status = 503
        elif path in PAGES:
            status, body = 200, PAGES[path](given)
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Both services on this machine, an empty data directory, and the mode `record`."""
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    monkeypatch.setenv("AGENTRM_TOOL_HTTP", "record")
    monkeypatch.setenv("MOVIE_KEY", "secret-token")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as local:
        local.asked = []
        thread = threading.Thread(target=local.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{local.server_address[1]}"
        monkeypatch.setattr(movie_world, "URL", base)
        pages = {"archive": "archive", "geocoding": "search", "air_quality": "air-quality",
                 "elevation": "elevation"}  # fmt: skip
        urls = {name: f"{base}/{page}" for name, page in pages.items()}
        monkeypatch.setattr(weather_world, "URLS", urls)
        local.base = base
        yield local
        local.shutdown()
        thread.join()


def task(tool, goal="?", parts=(1,), **spec):
    return Task(
        environment="toolquery", task_id=f"toolquery/{tool}/x", kind=tool, split="test",
        problem="0", max_steps=30, spec={"tool": tool, "goal": goal, "parts": list(parts), **spec},
    )  # fmt: skip


def weather_task(**more):
    return task("weather", today="2023-06-15", city="Springfield", **more)


def said(episode, tool, **arguments):
    return episode.step(f"{tool} with Action Input: {json.dumps(arguments)}")


def started(of):
    episode = FAMILY.create()
    return episode, episode.reset(of)


def test_the_family_is_one():
    assert isinstance(FAMILY, EnvironmentFamily)
    assert FAMILY.demonstrate(weather_task()) is None


def test_without_files_one_line_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    reason = FAMILY.missing()
    assert reason is not None
    assert "weather.jsonl: not found; get it from https://github.com/WooooDyy/AgentGym" in reason
    assert "\n" not in reason
    assert tuple(FAMILY.kinds()) == ("weather", "movie", "academia")
    with pytest.raises(UserError, match=r"weather\.jsonl"):
        FAMILY.counts()
    with pytest.raises(UserError, match=r"academia\.jsonl"):
        FAMILY.tasks("test", kinds=["academia"], n=1)
    with pytest.raises(UserError, match="no kind 'films': choose from weather, movie, academia"):
        FAMILY.tasks("test", kinds=["films"], n=1)


def label(number, tool, goal, answer, config=None, parts=None):
    return {"id": number, "goal": goal, "subgoals": parts or [answer], "difficulty": "easy",
            "additional_info": {"answer": answer, "init_config": config, "goal_type": 0,
                                "tool": tool}}  # fmt: skip


CONFIG = {"current_date": "2023-06-15", "current_location": "Springfield"}
LABELS = {
    "weather": [
        label(0, "weather", "How warm?", 9.5, CONFIG),
        label(1, "weather", "How warm?", 9.5, CONFIG),
        label(2, "weather", "How wet?", 4.0, CONFIG),
    ],
    "movie": [label(0, "movie", "Who?", "Sea")],
    "academia": [label(0, "academia", "Where?", "Coastal Notes")],
}


def write_labels(folder):
    (folder / "tool").mkdir(exist_ok=True)
    for kind, labels in LABELS.items():
        text = "\n".join(map(json.dumps, labels))
        (folder / "tool" / f"{kind}.jsonl").write_text(text)


def test_kinds_that_can_be_played_are_without_the_others(server, tmp_path, monkeypatch):
    pytest.importorskip("geographiclib")
    write_labels(tmp_path)
    assert tuple(FAMILY.kinds()) == ("weather", "movie")
    assert FAMILY.missing() is None
    assert FAMILY.counts() == {"test": 3}  # two are the same
    tasks = FAMILY.tasks("test", kinds=FAMILY.kinds(), n=9)
    assert [t.task_id for t in tasks] == [
        "toolquery/weather/agentgym-0", "toolquery/movie/agentgym-0",
        "toolquery/weather/agentgym-2"]  # fmt: skip
    assert len({t.problem for t in tasks}) == 3
    assert FAMILY.tasks("train", kinds=["weather"], n=9) == []
    with pytest.raises(UserError, match=r"academia\.json: not found.*academia_graph FOLDER"):
        FAMILY.tasks("test", kinds=["academia"], n=1)
    monkeypatch.delenv("MOVIE_KEY")
    with pytest.raises(UserError, match="MOVIE_KEY: not set"):
        FAMILY.tasks("test", kinds=["movie"], n=1)
    monkeypatch.setenv("AGENTRM_TOOL_HTTP", "replay")
    with pytest.raises(UserError, match="no recorded answers"):
        FAMILY.tasks("test", kinds=["weather"], n=1)
    monkeypatch.setenv("AGENTRM_TOOL_HTTP", "make it up")
    with pytest.raises(UserError, match="must be replay or record"):
        FAMILY.tasks("test", kinds=["weather"], n=1)


def test_agentboard_s_list_is_the_paper_split(server, tmp_path):
    pytest.importorskip("geographiclib")
    write_labels(tmp_path)
    assert FAMILY.metric == "success rate"
    assert FAMILY.tasks("test", kinds=["movie"], n=9)
    own = tmp_path / "tool" / "agentboard" / "tool-query"
    own.mkdir(parents=True)
    many = [label(n, "weather", f"How warm? {n}", 1.5, CONFIG, [2, 1.5]) for n in range(59)]
    (own / "test.jsonl").write_text("\n".join(map(json.dumps, [*many, *LABELS["movie"]])))
    paper = FAMILY.tasks("paper", kinds=FAMILY.kinds(), n=99)
    assert len(paper) == FAMILY.counts()["paper"] == 60
    assert FAMILY.metric == "progress rate"
    assert FAMILY.tasks("test", kinds=["movie"], n=9) == []  # it is in the paper's list
    others = FAMILY.tasks("test", kinds=FAMILY.kinds(), n=9)
    assert not {t.problem for t in paper} & {t.problem for t in others}
    (own / "test.jsonl").write_text(json.dumps(many[0]))
    with pytest.raises(UserError, match="holds 1 tasks, not 60"):
        FAMILY.tasks("paper", kinds=["weather"], n=1)


def test_weather_answers_are_recorded_and_replayed(server, monkeypatch):
    span = {"latitude": 42.1, "longitude": "-72.5", "start_date": "2023-06-01",
            "end_date": "2023-06-01"}  # fmt: skip
    calls = [
        ("get_latitude_longitude", {"name": "Springfield"}),
        ("get_historical_temp", span),
        ("get_historical_rain", span),
        ("get_historical_snow", span),
        ("get_temp_forecast", {**span, "start_date": "2023-06-16", "end_date": "2023-06-16"}),
        ("get_current_rain", {"latitude": 1, "longitude": 2, "current_date": "2023-06-15"}),
        ("get_elevation", {"latitude": 1, "longitude": 2}),
        ("get_historical_air_quality_index", span),
        ("get_current_air_quality_index", {"latitude": 1, "longitude": 2,
                                           "current_date": "2023-06-15"}),
    ]  # fmt: skip
    episode, _ = started(weather_task())
    first = [said(episode, name, **arguments) for name, arguments in calls]
    assert all(answer.valid for answer in first)
    assert first[0].observation == str(
        {"results": [{"name": "Springfield", "latitude": 42.1, "longitude": -72.5,
                      "country_code": "US"}]}
    )  # fmt: skip
    assert first[1].observation.startswith("{'latitude': 42.13, 'longitude': -72.49, 'daily_units'")
    assert "'temperature_2m_mean': [9.5]" in first[1].observation
    assert "'daily': {'time': ['2023-06-01'], 'rain_sum': [4.0]}" in first[2].observation
    assert first[6].observation == "{'elevation': [38.0]}"
    assert first[7].observation.endswith(
        "'daily': {'time': ['2023-06-01T12:00'], 'european_aqi_pm2_5': [12]}}"
    )
    asked = len(server.asked)
    assert asked == len(calls)
    monkeypatch.setenv("AGENTRM_TOOL_HTTP", "replay")
    episode, _ = started(weather_task())
    assert [said(episode, name, **arguments) for name, arguments in calls] == first
    assert len(server.asked) == asked  # nobody was asked again
    with pytest.raises(NotRecordedError, match=r"weather: http.*search with .*Oslo.*not recorded"):
        said(episode, "get_latitude_longitude", name="Oslo")


def test_what_is_not_recorded_ends_a_node_and_no_more(server, monkeypatch):
    episode, _ = started(weather_task())
    said(episode, "get_elevation", latitude=1, longitude=2)
    monkeypatch.setenv("AGENTRM_TOOL_HTTP", "replay")
    pool = EnvPool(workers=0)
    ((handle, _),) = pool.reset([weather_task()])
    good = 'get_elevation with Action Input: {"latitude": 1, "longitude": 2}'
    bad = 'get_elevation with Action Input: {"latitude": 1, "longitude": 3}'
    first, second = pool.branch([(handle, bad), (handle, good)])
    assert "was not recorded" in first.reason
    assert second[1].observation == "{'elevation': [38.0]}"


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("get_historical_temp", {"start_date": "2023-06-15", "end_date": "2023-06-15"},
         "Error: start_date should be earlier than current_date"),
        ("get_historical_rain", {"start_date": "2023-06-01", "end_date": "2023-06-15"},
         "Error: end_date should be earlier than current_date"),
        ("get_snow_forecast", {"start_date": "2023-06-15", "end_date": "2023-06-16"},
         "Error: start_date should be later than current_date"),
        ("get_historical_snow", {"start_date": "2023-01-01", "end_date": "2023-03-01"},
         "Error: Sorry, at present, we support a maximum time span of 30 days"),
        ("get_historical_temp", {"start_date": "June", "end_date": "2023-03-01"},
         "ERROR | ValueError(time data 'June' does not match format '%Y-%m-%d')"),
        ("get_historical_temp", {"start_date": "2023-06-01"}, "ERROR | KeyError('end_date')"),
        ("get_latitude_longitude", {"name": "Nowhere"}, "ERROR | KeyError('results')"),
        ("get_air_quality_level", {"air_quality_index": "9"}, "ERROR | TypeError("),
        ("get_air_quality", {}, "ERROR | Invalid action: get_air_quality."),
    ],
)  # fmt: skip
def test_impossible_questions_about_weather(server, name, arguments, answer):
    episode, _ = started(weather_task())
    given = arguments if "date" not in str(arguments) else {"latitude": 1, "longitude": 2,
                                                            **arguments}  # fmt: skip
    transition = said(episode, name, **given)
    assert transition.observation.startswith(answer)
    assert (transition.valid, transition.done, transition.reward) == (False, False, 0.0)


def test_distances_and_levels():
    pytest.importorskip("geographiclib")
    episode, first = started(weather_task())
    assert 'you must call "get_latitude_longitude"' in first
    far = {"latitude1": 52.0, "longitude1": 4.0, "latitude2": 48.5, "longitude2": 2.5}
    assert float(said(episode, "get_distance", **far).observation) == pytest.approx(403.6, abs=1)
    far["latitude1"] = 91
    assert "[-90; 90]" in said(episode, "get_distance", **far).observation
    levels = {20: "good", 21: "extremely poor", 22: "fair", 60: "moderate", 80: "poor",
              100: "very poor", 101: "extremely poor"}  # fmt: skip
    for index, word in levels.items():
        assert said(episode, "get_air_quality_level", air_quality_index=index).observation == word
    assert said(episode, "get_user_current_date").observation == "2023-06-15"
    assert said(episode, "get_user_current_location").observation == "Springfield"


def test_movie_answers(server, tmp_path):
    episode, _ = started(task("movie"))
    found = said(episode, "get_search_movie", movie_name="gull").observation
    assert found == "[{'id': 11, 'overview': 'Birds.', 'title': 'The Gull'}]"
    assert server.asked[-1] == (
        "/search/movie",
        {"query": "gull", "include_adult": "false", "language": "en-US", "page": "1"},
        "Bearer secret-token",
    )
    details = said(episode, "get_movie_details", movie_id="11").observation
    assert details == str({key: MOVIE[key] for key in (
        "title", "budget", "genres", "revenue", "vote_average", "release_date")})  # fmt: skip
    cast = said(episode, "get_movie_cast", movie_id=11).observation
    assert cast.count("'name'") == 10
    people = said(episode, "get_movie_crew", movie_id=11).observation
    assert people == str({"crew": [{"id": n, "name": f"N{n}", "job": job} for n, job in (
        (2, "Director"), (3, "Writer"), (1, "Editor"))]})  # fmt: skip
    for name, text in {
        "get_movie_production_companies": "{'production_companies': [{'id': 2, 'name': 'Sea'}]}",
        "get_movie_keywords": "{'keywords': ['sea']}",
        "get_movie_alternative_titles": "{'id': 11, 'titles': []}",
        "get_movie_translation": "{'id': 11, 'translations': [{'iso_3166_1': 'DE', 'name': "
        "'Deutsch', 'data': {'overview': 'V'}}]}",
    }.items():
        assert said(episode, name, movie_id=11).observation == text
    for name, text in {
        "get_person_details": "'place_of_birth': 'Oslo'",
        "get_person_cast": "{'cast': [{'id': 11, 'title': 'The Gull', 'character': 'Gull'}]}",
        "get_person_crew": "{'crew': [{'id': 11, 'title': 'The Gull', 'job': 'Writer'}]}",
        "get_person_external_ids": "'twitter_id': 'p'",
    }.items():
        assert text in said(episode, name, person_id=5).observation
    assert said(episode, "get_search_person", person_name="Nobody").observation == "[]"
    missing = said(episode, "get_movie_details", movie_id="../person/5")
    assert not missing.valid
    assert "could not be found" in missing.observation
    assert "IndexError" in said(episode, "get_search_movie", movie_name="").observation
    kept = "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    assert "The Gull" in kept
    assert "secret-token" not in kept


def test_a_service_that_fails_is_not_recorded(server, tmp_path):
    service = Service("weather")
    with pytest.raises(ServiceError, match="status 503"):
        service.get(f"{server.base}/busy", {})
    with pytest.raises(ServiceError):
        service.get("http://127.0.0.1:9/archive", {})
    assert not list(tmp_path.rglob("*.json"))


def test_broken_records_are_named(server, tmp_path):
    service = Service("weather")
    service.get(f"{server.base}/elevation", {"latitude": 1, "nothing": None})
    (file,) = tmp_path.rglob("*.json")
    kept = json.loads(file.read_text())
    assert kept["parameters"] == {"latitude": "1"}
    file.write_text(json.dumps({**kept, "endpoint": "other"}))
    with pytest.raises(UserError, match="is the answer to another request"):
        service.get(f"{server.base}/elevation", {"latitude": 1})
    file.write_text("[]")
    with pytest.raises(UserError, match="not a recorded answer"):
        service.get(f"{server.base}/elevation", {"latitude": 1})


def test_parts_of_a_goal_are_paid_once(server):
    place = {"results": [{"name": "Springfield", "latitude": 42.1, "longitude": -72.5,
                          "country_code": "US"}]}  # fmt: skip
    units = dict.fromkeys([f"temperature_2m_{what}" for what in ("max", "min", "mean")], "°C")
    warm = {"latitude": 42.0, "longitude": -72.5, "daily": {"time": ["2023-06-01"]},
            "daily_units": {"time": "iso8601", **units}}  # fmt: skip
    episode, _ = started(weather_task(parts=[place, warm, None, 9.5]))
    look = {"name": "Springfield"}
    assert [said(episode, "get_latitude_longitude", **look).reward for _ in (1, 2)] == [0.25, 0.0]
    span = {"latitude": 42, "longitude": -72, "start_date": "2023-06-01", "end_date": "2023-06-01"}
    assert said(episode, "get_historical_temp", **span).reward == 0.25  # a place nearby
    assert said(episode, "check_valid_actions").reward == 0.0  # its answer is not None
    other = episode.fork()
    last = said(episode, "finish", answer=9.5)
    assert (last.done, last.success, last.reward) == (True, False, 0.25)
    assert episode.step("").done is False  # whatever is done after the end
    assert said(other, "finish", answer=None).reward == 0.25


def networks():
    """AgentBoard's six pickles in small, with networkx's own classes."""
    networkx = pytest.importorskip("networkx")
    papers = networkx.DiGraph(name="papers")
    for key, title in enumerate(("On Counting Gulls", "Gulls", "Terns")):
        papers.add_node(key, year=2014 + key, venue="Coastal Notes", keywords=[title[0]])
    papers.add_edge(0, 2)
    papers.add_edge(0, 1, weight=2)
    authors = networkx.Graph()
    for key, name in enumerate(("Ida", "Bo", "Eve")):
        authors.add_node(key, name=name, org="Shore")
    authors.add_edge(0, 1, collaborative_papers=[0, 2])
    _ = authors.adj, papers.nodes, authors.edges  # views that stay in the object
    titles = dict(enumerate(("On Counting Gulls", "Gulls", "Terns")))
    names = dict(enumerate(("Ida", "Bo", "Eve")))
    return {
        "paper_net": papers, "author_net": authors,
        "id2title_dict": titles, "id2author_dict": names,
        "title2id_dict": {v: k for k, v in titles.items()} | {"Counting Gulls": 0},
        "author2id_dict": {v: k for k, v in names.items()},
    }  # fmt: skip


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    """The same converted, in the data directory."""
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    raw = tmp_path / "raw"
    raw.mkdir()
    for protocol, (name, value) in enumerate(networks().items()):
        (raw / f"{name}.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    monkeypatch.setattr(sys, "argv", ["academia_graph", str(raw)])
    assert academia_graph.main() == 0
    write_labels(tmp_path)
    return raw


def test_graphs_are_converted_and_read(graphs):
    assert tuple(FAMILY.kinds()) == ("academia",)
    (of,) = FAMILY.tasks("test", kinds=["academia"], n=9)
    episode, _ = started(of)
    check = {"node": "On Counting Gulls"}
    assert not said(episode, "paperNodeCheck", **check).valid
    assert said(episode, "loadPaperNet").observation == "PaperNet is loaded."
    assert said(episode, "paperNodeCheck", **check).observation == (
        "{'year': 2014, 'venue': 'Coastal Notes', 'keywords': ['O']}"
    )
    fork = episode.fork()
    assert said(episode, "loadAuthorNet").observation == "AuthorNet is loaded."
    answers = {
        ("neighbourCheck", "PaperNet", "On Counting Gulls"): "['Terns', 'Gulls']",
        ("neighborCheck", "PaperNet", "Counting Gulls"): "['Terns', 'Gulls']",
        ("neighbourCheck", "PaperNet", "Gulls"): "[]",
        ("neighbourCheck", "AuthorNet", "Bo"): "['Ida']",
        ("neighbourCheck", "AuthorNet", "Nil"): "There is no node named Nil in the AuthorNet.",
        ("neighbourCheck", "Net", "Nil"): "There is no graph named Net.",
    }
    for (name, graph, node), text in answers.items():
        assert said(episode, name, graph=graph, node=node).observation == text
    edges = {
        ("authorEdgeCheck", "Bo", "Ida"): "{'collaborative_papers': ['On Counting Gulls', "
        "'Terns']}",
        ("authorEdgeCheck", "Bo", "Eve"): "There is no edge between Bo and Eve.",
        ("paperEdgeCheck", "On Counting Gulls", "Gulls"): "{'weight': 2}",
        ("paperEdgeCheck", "Gulls", "On Counting Gulls"): "There is no edge between Gulls and "
        "On Counting Gulls.",
    }
    for (name, one, other), text in edges.items():
        assert said(episode, name, node1=one, node2=other).observation == text
    assert said(episode, "authorNodeCheck", node="Eve").observation == str(
        {"name": "Eve", "org": "Shore"}
    )
    assert not said(fork, "authorNodeCheck", node="Eve").valid  # not loaded there
    last = said(fork, "finish", answer="Coastal Notes")
    assert (last.success, last.reward) == (True, 1.0)


class Trap:
    """What a pickle of a stranger could hold."""

    def __reduce__(self):
        return (print, ("loaded!",))


class Outside:
    value = 3


@pytest.mark.parametrize("stranger", [Trap(), Outside(), {"deep": [Trap()]}, os.getcwd, complex(1)])
def test_strangers_in_a_pickle_are_refused(graphs, stranger, capsys):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (graphs / "id2title_dict.pkl").write_bytes(pickle.dumps(stranger, protocol=protocol))
        with pytest.raises(UserError, match=r"id2title_dict\.pkl: "):
            academia_graph.convert(graphs)
    assert capsys.readouterr().out == "" or "loaded!" not in capsys.readouterr().out


def test_other_pickles_are_refused(graphs):
    (graphs / "paper_net.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"holds os\.system"):
        academia_graph.convert(graphs)
    (graphs / "paper_net.pkl").write_bytes(b"\x80\x04\x95")
    with pytest.raises(UserError, match=r"paper_net\.pkl: "):
        academia_graph.convert(graphs)
    (graphs / "paper_net.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="not AgentBoard's graphs"):
        academia_graph.convert(graphs)
    (graphs / "paper_net.pkl").unlink()
    with pytest.raises(UserError, match=r"paper_net\.pkl: not found"):
        academia_graph.convert(graphs)


def test_a_broken_converted_graph_is_named(graphs, tmp_path):
    (tmp_path / "tool" / "academia.json").write_text("{}")
    with pytest.raises(UserError, match=r"academia\.json: not a converted graph"):
        started(task("academia"))


def test_the_prompt_s_example_is_what_happens(graphs):
    prompt = FAMILY.prompt()
    goal = prompt.example[0].split("\n")[0].removeprefix("Goal: ")
    episode, first = started(task("academia", goal=goal, parts=[2014]))
    lines = first.split("\n")
    assert [line for line in prompt.example[0].split("\n") if line not in lines] == []
    for reply, answer in zip(prompt.example[1::2], prompt.example[2::2], strict=False):
        text = episode.step(reply.partition("\nAction: ")[2]).observation
        assert text.replace("'keywords': ['O']", "'n_citation': 3") == answer
    assert episode.step(prompt.example[-1].partition("\nAction: ")[2]).success


def test_a_task_is_plain_json_and_a_worker_needs_no_jax():
    of = weather_task(parts=[{"a": [1]}])
    assert Task(**json.loads(json.dumps(dataclasses.asdict(of)))) == of
    code = (
        "import sys; from agentrm_jax.envs.tools.toolquery import ToolQuery as T; f = T();"
        "f.missing(); f.create(); sys.exit('jax' in sys.modules or 'networkx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(
    not Path(REAL, "tool", "weather.jsonl").is_file(),
    reason="AGENTRM_DATA has no tool/weather.jsonl",
)
def test_the_real_labels_are_read(monkeypatch):
    pytest.importorskip("geographiclib")
    monkeypatch.setenv(tool_http.VARIABLE, "record")  # nothing is asked: tasks are only listed
    monkeypatch.setenv("MOVIE_KEY", "none")
    tasks = FAMILY.tasks("test", kinds=["weather", "movie"], n=9999)
    assert len(tasks) == len({t.problem for t in tasks})
    assert {t.max_steps for t in tasks} == {30}
    for each in tasks:
        episode, first = started(each)
        assert first.startswith(f"Goal: {each.spec['goal'].strip()}\nTools:\n- get_")
        if len(each.spec["parts"]) == 1 and not isinstance(each.spec["parts"][0], dict):
            answer = json.dumps(each.spec["parts"][0])
            last = episode.step(f'finish with Action Input: {{"answer": {answer}}}')
            assert last.done
            # Some labels hold lists that are not sorted, so nobody can give their answer.
            sortable = not isinstance(each.spec["parts"][0], list)
            assert last.success or not sortable
