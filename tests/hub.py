"""The Hugging Face Hub, played on loopback: in the tests the real libraries send their real requests to it.

    with contextlib.closing(Hub()) as hub:  # hub.url is HF_ENDPOINT, which huggingface_hub reads when it is imported
        hub.add("dataset", "alice/ccub", {"README.md": b"..."}, private=True)
        hub.fail("POST", "/commit/", status=503)

It plays users whose tokens write or only read; model and dataset repositories that are public, private or gated, each
with the commits of its branch main; uploads, in the commit itself or by the basic transfer of Git LFS; downloads;
collections; and the Hub's refusals, with their status and error code. On demand it refuses, hangs up, stalls, answers
with anything, or changes in the middle of a push.

It does not play Xet (set HF_HUB_DISABLE_XET=1), LFS uploads in parts, the redirection of LFS downloads to another
host, other branches, tags and pull requests, repositories that move or disappear, organizations, listings of several
pages or with `expand`, Spaces, buckets, search, and the dataset viewer. What it does not know is answered 404.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

import yaml


# What it keeps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commit:
    title: str
    files: dict[str, bytes]
    sha: str = field(default_factory=lambda: secrets.token_hex(20))


@dataclass
class Repo:
    """`gated`: everybody sees what files it has, its owner alone may download them."""

    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {".gitattributes": b"* -text\n"})])

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.head.files

    def at(self, revision: str) -> Commit:
        found = {commit.sha: commit for commit in self.commits} | {"main": self.head}
        if revision not in found:
            raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return found[revision]


@dataclass(frozen=True)
class Request:
    """One that arrived. `headers` have lower-case names; `size` counts the bytes of its body that were read."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)  # a failing test should not print a token
    size: int


@dataclass
class Answer:
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


class Refusal(Exception):
    """`code` is what the clients choose their exception by; `fields` stand beside the message in the answer."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers=(), **fields):
        super().__init__(message)
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **dict(headers)}
        self.answer = Answer(json.dumps({"error": message, **fields}).encode(), headers, status)


@dataclass
class Fault:
    method: str
    path: str
    times: int
    refusal: Refusal | None = None
    cuts: str | None = None  # "request" or "answer"
    instead: Answer | None = None
    stalls: str | None = None  # "silent" or "drip"
    first: Callable[[], None] | None = None


class Hub:
    """`users` and `readers`: token -> user name, for tokens that write and tokens that only read.

    `upload_mode` is how files that look binary are uploaded, in the commit ("regular") or by Git LFS ("lfs").
    """

    def __init__(self, users=None, readers=None, upload_mode="regular"):
        self.users = users or {"hf_alice": "alice", "hf_bob": "bob"}
        self.readers = readers or {"hf_alice_read": "alice"}
        self.upload_mode = upload_mode
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.cleared = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def clear(self):
        """Forget all but the users, for the next test."""
        for kept in (self.repos, self.collections, self.lfs, self.requests, self.faults):
            kept.clear()
        self.cleared.set()
        self.cleared = threading.Event()
        self.upload_mode = "regular"

    def add(self, repo_type: str, repo_id: str, files: dict[str, bytes], *, private: bool = False) -> str:
        """Commit `files`, beside those there are, to a repository that is created if there is none; the new sha."""
        repo = self.repos.setdefault((repo_type, repo_id), Repo(private))
        repo.commits.append(Commit("seeded", repo.files | files))
        return repo.head.sha

    def fail(self, method: str, path: str, *, status: int, times: int = 1, headers=()):
        """Refuse the next requests of the method in whose path, with its query, the expression `path` is found."""
        self.faults.append(Fault(method, path, times, refusal=Refusal(status, "a fault", headers=headers)))

    def cut(self, method: str, path: str, *, times: int = 1, answer: bool = False):
        """Hang up on such requests half-way through their body, unserved, or half-way through the `answer` to them."""
        self.faults.append(Fault(method, path, times, cuts="answer" if answer else "request"))

    def answer(self, method: str, path: str, body: bytes, *, times: int = 1, headers=()):
        """Answer such requests with 200 and `body`, unserved."""
        self.faults.append(Fault(method, path, times, instead=Answer(body, dict(headers))))

    def stall(self, method: str, path: str, *, times: int = 1, drip: bool = False):
        """Take such requests and say nothing, or with `drip` byte after byte without an end, until `clear`."""
        self.faults.append(Fault(method, path, times, stalls="drip" if drip else "silent"))

    def before(self, method: str, path: str, change: Callable[[], None]):
        """Call `change` when the next such request has arrived, before it is served."""
        self.faults.append(Fault(method, path, 1, first=change))

    def asked(self, pattern: str) -> int:
        """In how many of the requests, written as "GET /path?query", the expression is found."""
        return sum(re.search(pattern, f"{request.method} {request.path}") is not None for request in self.requests)


# HTTP ----------------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the client to acknowledge the headers before it

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client may hang up at any time
            super().handle()

    def serve(self):
        hub, headers = self.server.hub, {name.lower(): value for name, value in self.headers.items()}
        fault = self.fault()
        self.close_connection |= fault.cuts is not None
        size = int(headers.get("content-length", 0))
        body = self.rfile.read(size // 2 if fault.cuts == "request" else size)
        hub.requests.append(Request(self.command, self.path, headers, len(body)))
        if fault.cuts == "request":
            return
        if fault.stalls:
            return self.stall(hub.cleared, drip=fault.stalls == "drip")
        if fault.first:
            fault.first()
        try:
            if fault.refusal:
                raise fault.refusal
            with hub.lock:
                answer = fault.instead or respond(hub, self.command, self.path, headers, body)
        except Refusal as refusal:
            answer = refusal.answer
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if fault.cuts else answer.body)

    def stall(self, cleared: threading.Event, *, drip: bool):
        self.close_connection = True
        if drip:
            self.send_response(200)
            self.end_headers()
        while not cleared.wait(0.02):
            if drip:
                self.wfile.write(b" ")

    do_HEAD = do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def fault(self) -> Fault:
        with self.server.hub.lock:
            for fault in self.server.hub.faults:
                if fault.times and fault.method == self.command and re.search(fault.path, self.path):
                    fault.times -= 1
                    return fault
        return Fault(self.command, self.path, 0)

    def log_message(self, *_):
        pass


# Who may do what -----------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A request on its way to the function that answers it."""

    hub: Hub
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    def __post_init__(self):
        tokens = {"": None} | self.hub.users | self.hub.readers
        self.token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if self.token not in tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        self.user = tokens[self.token]

    @property
    def json(self):
        return json.loads(self.body)

    def check_known(self):
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")

    def check_writes(self, owner: str):
        self.check_known()
        if self.hub.users.get(self.token) != owner:
            raise Refusal(403, f"This token cannot write what belongs to {owner}")

    def repo(self, kind: str, repo_id: str, *, writes: bool = False, downloads: bool = False) -> Repo:
        """A repository that the caller may see, and may write or download if that is demanded."""
        owner, repo = repo_id.split("/")[0], self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and self.user != owner):
            missing = (404, "Repository not found") if self.user else (401, "Invalid username or password.")
            raise Refusal(*missing, code="RepoNotFound")
        if writes:
            self.check_writes(owner)
        if downloads and repo.gated and self.user != owner:
            raise Refusal(403 if self.user else 401, f"Access to {kind} {repo_id} is restricted", code="GatedRepo")
        return repo


ROUTES = []
REPO = r"/api/(?P<kind>model|dataset)s/(?P<repo_id>[^/]+/[^/]+)"
FILES = r"/(?:(?P<kind>dataset)s/)?(?P<repo_id>[^/]+/[^/]+?)"


def route(methods: str, path: str):
    """For a function of a Call and of the groups in the expression `path`; it returns an Answer, or JSON for one."""

    def register(function):
        ROUTES.append((re.compile(f"(?:{methods}) {path}"), function))
        return function

    return register


def respond(hub: Hub, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    path, _, query = path.partition("?")
    call = Call(hub, parse_qs(query), headers, body)
    for pattern, function in ROUTES:
        if found := pattern.fullmatch(f"{method} {path}"):
            groups = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
            answer = function(call, **groups)
            return answer if isinstance(answer, Answer) else Answer(json.dumps(answer).encode())
    raise Refusal(404, f"{method} {path} is not played here")


# Repositories --------------------------------------------------------------------------------------------------------


@route("GET", "/api/whoami-v2")
def whoami(call):
    call.check_known()
    role = "write" if call.token in call.hub.users else "read"
    return {"type": "user", "name": call.user, "orgs": [], "auth": {"accessToken": {"role": role}}}


@route("POST", "/api/repos/create")
def create_repo(call):
    kind, owner = call.json.get("type", "model"), call.json["organization"] or call.user
    call.check_writes(owner)
    repo_id = f"{owner}/{call.json['name']}"
    url = f"{call.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    if (kind, repo_id) in call.hub.repos:
        raise Refusal(409, f"You already created this {kind} repo", url=url)
    call.hub.repos[kind, repo_id] = Repo(private=call.json.get("visibility") == "private")
    return {"url": url}


@route("GET", f"{REPO}(?:/revision/(?P<revision>[^/]+))?")
def repo_info(call, kind, repo_id, revision="main"):
    repo = call.repo(kind, repo_id)
    commit = repo.at(revision)
    told = {"id": repo_id, "sha": commit.sha, "private": repo.private, "gated": "manual" if repo.gated else False}
    told["cardData"] = front_matter(commit.files.get("README.md", b"").decode())
    return told | {"tags": [], "siblings": [{"rfilename": path} for path in commit.files]}


@route("POST", "/api/validate-yaml")
def validate_yaml(call):
    try:
        front_matter(call.json["content"])
    except yaml.YAMLError as error:
        raise Refusal(400, "Invalid YAML", errors=[{"message": str(error)}], warnings=[]) from error
    return {"errors": [], "warnings": []}


def front_matter(card: str) -> dict:
    found = re.match(r"---\n(.*?)^---", card, re.DOTALL | re.MULTILINE)
    return yaml.safe_load(found[1]) if found else {}


@route("GET", f"{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(call, kind, repo_id, revision, folder=""):
    files = call.repo(kind, repo_id).at(revision).files
    start = f"{folder}/" if folder else ""
    inside = {path: told for path, told in entries(call.hub, files).items() if path.startswith(start)}
    if folder and not inside:
        raise Refusal(404, f"{folder} does not exist on {revision}", code="EntryNotFound")
    recursive = call.query["recursive"] == ["true"]
    return [told for path, told in inside.items() if recursive or "/" not in path.removeprefix(start)]


@route("POST", f"{REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(call, kind, repo_id, revision):
    told = entries(call.hub, call.repo(kind, repo_id).at(revision).files)
    return [told[path] for path in parse_qs(call.body.decode())["paths"] if path in told]


def entries(hub: Hub, files: dict[str, bytes]) -> dict[str, dict]:
    """What is told of the files, and of the folders they lie in, by path."""
    folders = {path[: slash.start()] for path in files for slash in re.finditer("/", path)}
    told = {path: {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path} for path in folders}
    for path, data in files.items():
        told[path] = {"type": "file", "oid": git_oid(data), "size": len(data), "path": path}
        if (oid := lfs_oid(data)) in hub.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
            told[path]["oid"] = git_oid(pointer)
            told[path]["lfs"] = {"oid": oid, "size": len(data), "pointerSize": len(pointer)}
    return dict(sorted(told.items()))


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@route("HEAD|GET", f"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(call, repo_id, revision, path, kind="model"):
    commit = call.repo(kind, repo_id, downloads=True).at(revision)
    headers = {"X-Repo-Commit": commit.sha}
    if path not in commit.files:
        raise Refusal(404, "Entry not found", code="EntryNotFound", headers=headers)
    data = commit.files[path]
    headers["ETag"] = f'"{lfs_oid(data) if lfs_oid(data) in call.hub.lfs else git_oid(data)}"'
    if found := re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("range", "")):
        part = data[int(found[1]) : int(found[2]) + 1 if found[2] else None]
        headers["Content-Range"] = f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(data)}"
        return Answer(part, headers, 206)
    return Answer(data, headers)


# Uploads -------------------------------------------------------------------------------------------------------------


@route("POST", f"{REPO}/preupload/main")
def preupload(call, kind, repo_id):
    there, answers = call.repo(kind, repo_id, writes=True).files, []
    for path, sample in ((file["path"], base64.b64decode(file["sample"])) for file in call.json["files"]):
        mode, oid = "regular", git_oid
        if call.hub.upload_mode == "lfs" and b"\0" in sample:
            mode, oid = "lfs", lfs_oid
        known = oid(there[path]) if path in there else None
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
    return {"files": answers}


@route("POST", rf"{FILES}\.git/info/lfs/objects/batch")
def lfs_batch(call, repo_id, kind="model"):
    call.repo(kind, repo_id, writes=True)
    for each in (objects := call.json["objects"]):
        if each["oid"] not in call.hub.lfs:
            each["actions"] = {"upload": {"href": f"{call.hub.url}/lfs/{each['oid']}"}}
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_upload(call, oid):
    if lfs_oid(call.body) != oid:
        raise Refusal(400, "The content does not have this sha256")
    call.hub.lfs[oid] = call.body
    return Answer()


@route("POST", f"{REPO}/commit/main")
def commit(call, kind, repo_id):
    repo = call.repo(kind, repo_id, writes=True)
    files, title = dict(repo.files), ""
    for key, value in ((item["key"], item["value"]) for item in map(json.loads, call.body.splitlines())):
        match key:
            case "header":
                title = value["summary"]
                if value.get("parentCommit", repo.head.sha) != repo.head.sha:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                files[value["path"]] = call.hub.lfs[value["oid"]]
            case "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", code="EntryNotFound")
            case "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"])}
    repo.commits.append(Commit(title, files))
    return {"commitOid": repo.head.sha, "commitUrl": f"{call.hub.url}/{repo_id}/commit/{repo.head.sha}"}


@route("POST", f"{REPO}/super-squash/main")
def squash(call, kind, repo_id):
    repo = call.repo(kind, repo_id, writes=True)
    repo.commits = [Commit(call.json.get("message") or "Super-squash branch 'main'", repo.files)]
    return {}


# Collections ---------------------------------------------------------------------------------------------------------


@route("POST", "/api/collections")
def create_collection(call):
    title, owner = call.json["title"], call.json["namespace"]
    call.check_writes(owner)
    for slug, other in call.hub.collections.items():
        if (other["title"], other["owner"]) == (title, {"name": owner}):
            raise Refusal(409, "This collection exists", slug=slug)
    slug = f"{owner}/{re.sub('[^a-z0-9]+', '-', title.lower())}-{secrets.token_hex(12)}"
    told = {"slug": slug, "title": title, "owner": {"name": owner}, "private": call.json["private"], "items": []}
    told |= {"description": call.json.get("description"), "lastUpdated": "2026-01-01T00:00:00.000Z"}
    call.hub.collections[slug] = told | {"position": 0, "theme": "orange", "upvotes": 0}
    return call.hub.collections[slug]


@route("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)")
def collection(call, slug):
    found = call.hub.collections.get(slug)
    if found is None or (found["private"] and found["owner"] != {"name": call.user}):
        raise Refusal(404, "Collection not found")
    return found


@route("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items")
def add_item(call, slug):
    found, item = collection(call, slug), call.json["item"]
    call.check_writes(found["owner"]["name"])
    call.repo(item["type"], item["id"])
    if any((other["type"], other["id"]) == (item["type"], item["id"]) for other in found["items"]):
        raise Refusal(409, "This item is in the collection")
    note = {"note": {"text": call.json["note"]}} if "note" in call.json else {}
    found["items"].append({"_id": secrets.token_hex(12), "position": len(found["items"]), **item, **note})
    return found
