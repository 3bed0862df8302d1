"""A server on this machine that receives W&B's runs and keeps what it was sent.

It answers what W&B's client of 2026 asks while a run is logged, continued and finished, while an
artifact is uploaded, and while the agent of a sweep asks for a trial. Whatever else it is asked it
keeps in ``unknown``.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

ENTITY = "ours"


@dataclass
class Run:
    """What the server holds of a run."""

    name: str
    project: str
    settings: dict[str, Any] = field(default_factory=dict)  # displayName, groupName, tags, ...
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line
    events: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)  # ids of artifacts
    exit_code: int | None = None
    starts: int = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of the history in order."""
        return [self.history[number] for number in sorted(self.history)]


@dataclass
class Artifact:
    """A version of an artifact."""

    id: str
    collection: str
    kind: str
    digest: str
    metadata: dict[str, Any]
    aliases: list[str]
    project: str
    run: str
    index: int = 0
    is_committed: bool = False
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)  # PROJECT/COLLECTION


def project(name: str) -> dict[str, Any]:
    """A project as it is answered."""
    return {"id": "1", "internalId": "1", "name": name, "entity": {"id": "1", "name": ENTITY}}


class WandbServer(ThreadingHTTPServer):
    """Receives runs at ``address``.

    Attributes:
        runs: By their ids.
        artifacts: By their ids, in the order of their creation.
        disturb: Called with every request's path before it is answered; it may sleep, return a
            status to answer with, or raise ``ConnectionError`` to cut the connection.
        sweep: The configuration of a sweep, in YAML.
        trials: Commands that the agent of the sweep gets next, one each time; then it has to exit.
        unknown: The questions without an answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.uploads: dict[str, Callable[[bytes], None]] = {}
        self.disturb: Callable[[str], int | None] = lambda path: None
        self.manifests: dict[str, dict[str, Any]] = {}  # the files of manifests
        self.sweep = ""
        self.trials: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Say nothing of connections that were cut."""

    def upload_url(self, take: Callable[[bytes], None]) -> str:
        """An address; what is sent there is given to ``take``."""
        key = f"/storage/{next(self._numbers)}"
        self.uploads[key] = take
        return self.address + key

    def new_id(self, kind: str) -> str:
        """An id as W&B makes them."""
        return base64.b64encode(f"{kind}:{next(self._numbers)}".encode()).decode()

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        """The data that a GraphQL operation asks for, from its variables."""
        answer = getattr(self, f"_{operation}", None)
        if answer is None:
            self.unknown.append(operation)
            return {}
        with self.lock:
            return dict(answer(v.get("input", v)))

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        node = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**node, "teams": {"edges": []}}}

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": None}

    def _UpsertBucket(self, v: dict[str, Any]) -> dict[str, Any]:
        is_new = v["name"] not in self.runs
        run = self.runs.setdefault(v["name"], Run(v["name"], v["project"] or "uncategorized"))
        run.starts += v["displayName"] is not None
        keys = "displayName", "groupName", "jobType", "notes", "tags", "sweep", "entity", "program"
        run.settings |= {key: v[key] for key in keys if v.get(key) is not None}
        run.config |= json.loads(v["config"] or "{}")
        if v.get("summaryMetrics"):
            run.summary |= json.loads(v["summaryMetrics"])
        bucket = {
            **{"id": run.name, "name": run.name, "displayName": run.settings.get("displayName")},
            **{"description": None, "config": json.dumps(run.config)},
            **{"sweepName": run.settings.get("sweep"), "historyLineCount": len(run.history)},
            "project": project(run.project),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _RunResumeStatus(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        if run is None:
            return {"model": {**project(v["project"]), "bucket": None}}
        bucket = {
            **{"id": run.name, "name": run.name, "displayName": run.settings["displayName"]},
            **{"summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config)},
            **{"historyLineCount": len(run.history), "eventsLineCount": len(run.events)},
            **{"logLineCount": 0, "tags": run.settings.get("tags") or []},
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "eventsTail": json.dumps([json.dumps(row) for row in list(run.events.values())[-1:]]),
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**project(v["project"]), "bucket": bucket}}

    def _CreateRunFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        files = self.runs[v["run"]].files

        def place(name: str) -> dict[str, str]:
            return {
                "name": name,
                "uploadUrl": self.upload_url(lambda data: files.update({name: data})),
            }

        made = {"runID": v["run"], "uploadHeaders": [], "files": [place(n) for n in v["files"]]}
        return {"createRunFiles": made}

    def _CreateArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        names = [v["artifactCollectionName"]]
        for artifact in self.artifacts.values():
            if artifact.collection == names[0] and artifact.digest == v["digest"]:
                break
        else:
            artifact = Artifact(
                *(self.new_id("Artifact"), names[0], v["artifactTypeName"], v["digest"]),
                metadata=json.loads(v.get("metadata") or "{}"),
                aliases=[alias["alias"] for alias in v.get("aliases") or []],
                project=v["projectName"],
                run=v["runName"] or "",
                index=sum(a.collection == names[0] for a in self.artifacts.values()),
            )
            self.artifacts[artifact.id] = artifact
        before = [a for a in self.artifacts.values() if a.collection == names[0] and a.is_committed]
        latest = {"id": before[-1].id, "versionIndex": before[-1].index} if before else None
        made = {
            "id": artifact.id,
            "state": "COMMITTED" if artifact.is_committed else "PENDING",
            "artifactSequence": {"id": names[0], "latestArtifact": latest},
        }
        return {"createArtifact": {"artifact": made}}

    def _CreateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[v["artifactID"]]

        def take(data: bytes) -> None:
            artifact.manifest = json.loads(data)

        file = {"id": self.new_id("File"), "name": v["name"], "displayName": v["name"]}
        file |= {"uploadUrl": self.upload_url(take), "uploadHeaders": []}
        manifest = {"id": self.new_id("ArtifactManifest"), "file": file}
        self.manifests[manifest["id"]] = file
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _CreateArtifactFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for asked in v["artifactFiles"]:
            files, name = self.artifacts[asked["artifactID"]].files, asked["name"]

            def take(data: bytes, files: dict[str, bytes] = files, name: str = name) -> None:
                files[name] = data

            node = {
                "id": self.new_id("File"),
                "name": name,
                "displayName": name,
                "uploadHeaders": [],
            }
            node |= {
                "uploadUrl": self.upload_url(take),
                "storagePath": name,
                "uploadMultipartUrls": None,
            }
            edges.append({"node": {**node, "artifact": {"id": asked["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[v["artifactID"]]
        artifact.is_committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _LinkArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        place = f"{v['projectName']}/{v['artifactPortfolioName']}"
        self.artifacts[v["artifactID"]].links.append(place)
        return {"linkArtifact": {"versionIndex": 0, "artifactMembership": None}}

    def _ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _UpdateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        manifest = {"id": v["artifactManifestID"], "file": self.manifests[v["artifactManifestID"]]}
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def _ArtifactByID(self, v: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[v["id"]]
        sequence = {
            **{"__typename": "ArtifactSequence", "id": artifact.collection},
            **{"name": artifact.collection},
            "project": project(artifact.project),
        }
        alias = {"__typename": "ArtifactAlias", "artifactCollection": sequence}
        found = {
            **{"__typename": "Artifact", "id": artifact.id, "artifactSequence": sequence},
            **{"versionIndex": artifact.index, "digest": artifact.digest, "state": "COMMITTED"},
            **{"artifactType": {"id": "1", "name": artifact.kind}, "description": None},
            **{"metadata": json.dumps(artifact.metadata), "ttlDurationSeconds": -1},
            **{"ttlIsInherited": True, "tags": [], "historyStep": None, "size": 1},
            **{"digestAlgorithm": "MANIFEST_MD5", "commitHash": "1", "fileCount": 1},
            **{"createdAt": "2026-01-01T00:00:00Z", "updatedAt": None},
            "aliases": [{**alias, "id": name, "alias": name} for name in artifact.aliases],
        }
        return {"artifact": found}

    def _UseArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        self.runs[v["runName"]].used.append(v["artifactID"])
        return {"useArtifact": {"artifact": {"id": v["artifactID"], "digest": ""}}}

    def _SweepWithRuns(self, v: dict[str, Any]) -> dict[str, Any]:
        sweep = {"id": "1", "name": v["sweep"], "state": "RUNNING", "config": self.sweep}
        return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}

    def _CreateAgent(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "1"}}}

    def _Heartbeat(self, v: dict[str, Any]) -> dict[str, Any]:
        commands = [{"type": "exit"}]
        if any(json.loads(v["runState"]).values()):  # it is still busy
            commands = []
        elif self.trials:
            commands = [self.trials.pop(0)]
        heartbeat = {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}
        return {"agentHeartbeat": heartbeat}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self._body()
        with self.server.lock:
            disturb = self.server.disturb
        try:
            status = disturb(self.path)
        except ConnectionError:
            self.close_connection = True
            return
        if status is not None:
            self._reply(b"{}", status)
            return
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            request = json.loads(body)
            operation = request.get("operationName") or request["query"].split("(")[0].split()[-1]
            answer = {"data": self.server.answer(operation, request.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self._stream(unquote(self.path).split("/")[-2], json.loads(body))
        elif (take := self.server.uploads.get(self.path)) is not None:
            take(body)
        elif not self.path.startswith("/sdk/otel"):
            self.server.unknown.append(f"{self.command} {self.path}")
        self._reply(json.dumps(answer).encode())

    do_GET = do_PUT = do_POST

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            data = b"".join(parts)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _reply(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, name: str, sent: dict[str, Any]) -> None:
        """Take lines of the history, the events and the summary."""
        with self.server.lock:
            run = self.server.runs[name]
            for file, part in (sent.get("files") or {}).items():
                lines = part["content"]
                if file == "wandb-summary.json":
                    run.summary = json.loads(lines[-1])
                    continue
                kept = {"wandb-history.jsonl": run.history, "wandb-events.jsonl": run.events}
                if file in kept:
                    numbered = enumerate(lines, part["offset"])
                    kept[file] |= {number: json.loads(line) for number, line in numbered}
            if sent.get("complete"):
                run.exit_code = sent["exitcode"]
