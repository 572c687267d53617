"""The Hub on loopback (tests/hub.py), held against the libraries that are to take it for the real one."""

import contextlib
import http.client
import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import get_session
from peft import LoraConfig, get_peft_model_state_dict

from hub import Hub


@pytest.fixture
def alice(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")


# Who may do what -----------------------------------------------------------------------------------------------------


def test_the_libraries_ask_this_hub_and_read_the_token_when_they_ask(hub, monkeypatch):
    """The session's endpoint is the loopback Hub's, and HF_TOKEN may change from one call to the next."""
    assert huggingface_hub.constants.ENDPOINT == datasets.config.HF_ENDPOINT == hub.url
    with pytest.raises(LocalTokenNotFoundError):
        HfApi().whoami()
    assert not hub.requests and not hub.repos
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert HfApi().whoami()["name"] == "bob"
    monkeypatch.setenv("HF_TOKEN", "hf_alice_read")
    answer = HfApi().whoami()
    assert answer["name"] == "alice" and answer["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi().whoami("hf_made_up")
    assert [request.headers["authorization"] for request in hub.requests[:2]] == [
        "Bearer hf_bob",
        "Bearer hf_alice_read",
    ]
    assert "hf_bob" not in repr(hub.requests)


@pytest.mark.parametrize(
    ("kind", "token", "error", "status"),
    [
        ("public", False, None, 200),
        ("public", "hf_made_up", HfHubHTTPError, 401),
        ("private", False, RepositoryNotFoundError, 401),
        ("private", "hf_bob", RepositoryNotFoundError, 404),
        ("private", "hf_alice_read", None, 200),
        ("gated", False, GatedRepoError, 401),
        ("gated", "hf_bob", GatedRepoError, 403),
        ("gated", "hf_alice", None, 200),
        ("none", False, RepositoryNotFoundError, 401),
        ("none", "hf_alice", RepositoryNotFoundError, 404),
    ],
)
def test_who_may_download(hub, kind, token, error, status):
    """A repository that is private or that there is none of is the same to a stranger; a gated one is known."""
    if kind != "none":
        hub.add("model", "alice/x", {"a.txt": b"a"}, private=kind == "private")
        hub.repos["model", "alice/x"].gated = kind == "gated"
    if error is None:
        assert Path(hf_hub_download("alice/x", "a.txt", token=token)).read_bytes() == b"a"
    else:
        with pytest.raises(error) as raised:
            hf_hub_download("alice/x", "a.txt", token=token)
        assert type(raised.value) is error and raised.value.response.status_code == status
    if kind == "gated":
        assert HfApi().model_info("alice/x", token=token).gated == "manual"


@pytest.mark.parametrize(
    ("token", "status"), [(False, 401), ("hf_bob", 403), ("hf_alice_read", 403), ("hf_made_up", 401)]
)
def test_who_may_write(hub, token, status):
    """The owner's token writes, and no other; nothing is left of what was refused."""
    hub.add("model", "alice/x", {})
    api = HfApi(token=token)
    title = {"title": "alice's", "namespace": "alice"}
    for write in (
        lambda: api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id="alice/x"),
        lambda: api.create_repo("alice/y"),
        lambda: api.create_collection(**title),
        lambda: post_lfs_batch_info([UploadInfo.from_bytes(b"b")], token, "model", "alice/x"),
    ):
        with pytest.raises(HfHubHTTPError) as raised:
            write()
        assert raised.value.response.status_code == status
    assert list(hub.repos) == [("model", "alice/x")] and not hub.collections
    assert list(hub.repos["model", "alice/x"].files) == [".gitattributes"]


# Repositories --------------------------------------------------------------------------------------------------------


def test_commits_there_and_back(hub, alice):
    """What is created, committed, deleted and downloaded by HfApi is on the Hub as if by git."""
    api = HfApi()
    for _ in range(2):
        url = api.create_repo("x", repo_type="dataset", private=True, exist_ok=True)
        assert (url.repo_type, url.repo_id) == ("dataset", "alice/x")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("x", repo_type="dataset")
    repo, common = hub.repos["dataset", "alice/x"], {"repo_id": "alice/x", "repo_type": "dataset"}
    assert repo.private and api.dataset_info("alice/x").private

    files = {"old.txt": b"old", "b/1.bin": b"\0\1", "b/c/2.bin": b"\2"}
    first = api.create_commit(
        operations=[CommitOperationAdd(path, data) for path, data in files.items()], commit_message="first", **common
    )
    assert repo.files == {".gitattributes": b"* -text\n"} | files and repo.head.title == "first"
    second = api.create_commit(
        operations=[CommitOperationDelete("old.txt"), CommitOperationAdd("new.txt", b"new")],
        commit_message="second",
        parent_commit=first.oid,
        **common,
    )
    assert [commit.sha for commit in repo.commits[1:]] == [first.oid, second.oid]
    assert api.list_repo_files(**common) == [".gitattributes", "b/1.bin", "b/c/2.bin", "new.txt"]
    assert Path(hf_hub_download(filename="b/1.bin", **common)).read_bytes() == b"\0\1"
    assert Path(hf_hub_download(filename="old.txt", revision=first.oid, **common)).read_bytes() == b"old"
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(filename="old.txt", **common)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(filename="new.txt", revision="v1", **common)

    with pytest.raises(HfHubHTTPError, match="412"):
        api.delete_file("new.txt", parent_commit=first.oid, **common)
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("old.txt", **common)
    api.delete_folder("b", **common)
    assert sorted(repo.files) == [".gitattributes", "new.txt"]


def test_a_folder_replaces_what_was_there(hub, alice, tmp_path):
    """upload_folder with delete_patterns makes one commit, and sends no file that the Hub has already."""
    files = {"kept.txt": b"k" * 10_000, "changed.txt": b"new"}
    hub.add("model", "alice/x", files | {"gone.txt": b"gone", "changed.txt": b"old"})
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    HfApi().upload_folder(repo_id="alice/x", folder_path=tmp_path, delete_patterns="*")
    repo = hub.repos["model", "alice/x"]
    assert repo.files == {".gitattributes": b"* -text\n"} | files and len(repo.commits) == 3
    assert hub.requests[-1].path == "/api/models/alice/x/commit/main" and hub.requests[-1].size < 1000

    HfApi().upload_folder(repo_id="alice/x", folder_path=tmp_path)
    assert len(repo.commits) == 3


def test_what_is_told_of_a_repository(hub, alice):
    """The card's metadata, a folder's listing and single paths are what the card, the folder and the files are."""
    card = "---\nlicense: mit\nbase_model: alice/base\n---\n# x\n"
    hub.add("model", "alice/x", {"README.md": card.encode(), "a/1.txt": b"12", "a/b/2.txt": b""})
    api = HfApi()
    info = api.model_info("alice/x")
    assert (info.card_data.license, info.card_data.base_model) == ("mit", "alice/base")
    assert [file.rfilename for file in info.siblings] == [".gitattributes", "README.md", "a/1.txt", "a/b/2.txt"]
    assert [entry.path for entry in api.list_repo_tree("alice/x", "a")] == ["a/1.txt", "a/b"]
    (file,) = api.get_paths_info("alice/x", ["a/1.txt", "a/none.txt"])
    assert file.size == 2 and file.blob_id == "3cacc0b93c9c9c03a72da624ca28a09ba5c1336f"  # git hash-object
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("alice/x", "none"))


def test_a_card_that_is_no_yaml_is_refused(hub, alice):
    """Metadata that YAML cannot read stop a commit before anything is sent."""
    api, broken = HfApi(), b"---\nlicense: [mit\n---\n"
    hub.add("model", "alice/x", {})
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        api.upload_file(path_or_fileobj=broken, path_in_repo="README.md", repo_id="alice/x")
    assert len(hub.repos["model", "alice/x"].commits) == 2 and not hub.asked("preupload")


def test_what_is_not_played_is_said(hub, alice):
    """A request the Hub has no answer to fails at once, names itself, and is on record."""
    hub.add("model", "alice/x", {})
    with pytest.raises(HfHubHTTPError, match="DELETE /api/repos/delete is not played here"):
        HfApi().delete_repo("alice/x")
    assert hub.asked("^DELETE ") == 1


# What the libraries load ---------------------------------------------------------------------------------------------


CARD = b"""---
configs:
- config_name: china
  data_files: [{split: train, path: china/train-*}]
- config_name: korea
  data_files: [{split: train, path: korea/train-*}]
---
"""


def parquet(file, *captions):
    datasets.Dataset.from_dict({"text": captions}).to_parquet(file)
    return file.read_bytes()


def test_a_dataset_by_id_culture_and_revision(hub, monkeypatch, tmp_path):
    """load_dataset reads a private dataset's config at its head and at an older commit, with the token alone."""
    files = {"README.md": CARD, "china/train-0.parquet": parquet(tmp_path / "a", "a gate")}
    files["korea/train-0.parquet"] = parquet(tmp_path / "b", "a house")
    first = hub.add("dataset", "alice/ccub", files, private=True)
    hub.add("dataset", "alice/ccub", {"korea/train-0.parquet": parquet(tmp_path / "c", "a house", "a roof")})

    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset("alice/ccub", "korea", split="train")
    monkeypatch.setenv("HF_TOKEN", "hf_alice_read")
    hub.requests.clear()
    assert datasets.get_dataset_config_names("alice/ccub") == ["china", "korea"]
    assert datasets.load_dataset("alice/ccub", "korea", split="train")["text"][:] == ["a house", "a roof"]
    older = datasets.load_dataset("alice/ccub", "korea", split="train", revision=first)
    assert older["text"][:] == ["a house"]
    assert hub.asked(f"GET /datasets/alice/ccub/resolve/{first}/korea/train-0.parquet") == 1
    assert not hub.asked("china/train-0.parquet")
    assert all("authorization" in request.headers for request in hub.requests)
    with pytest.raises(datasets.exceptions.DatasetNotFoundError, match="Revision 'v1' doesn't exist"):
        datasets.load_dataset("alice/ccub", "korea", revision="v1")


def test_a_pipeline_and_a_lora_by_id(hub, alice, tiny_pipeline, tmp_path):
    """A pipeline that is pushed is loaded by its id, whole, in parts and with a LoRA, weight by weight."""
    api = HfApi()
    api.create_repo("alice/tiny", private=True)
    sha = api.upload_folder(repo_id="alice/tiny", folder_path=tiny_pipeline).oid
    there = StableDiffusionPipeline.from_pretrained("alice/tiny", safety_checker=None)
    here = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(here, part).state_dict()
        torch.testing.assert_close(getattr(there, part).state_dict(), expected, rtol=0, atol=0)
    unet = UNet2DConditionModel.from_pretrained("alice/tiny", subfolder="unet", revision=sha)
    torch.testing.assert_close(unet.state_dict(), here.unet.state_dict(), rtol=0, atol=0)

    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights="gaussian"))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(unet))
    hub.add("model", "alice/lora", {file.name: file.read_bytes() for file in tmp_path.iterdir()})
    there.load_lora_weights("alice/lora")
    assert there.get_active_adapters() == ["default_0"]
    assert hub.asked("GET /alice/lora/resolve/.*/pytorch_lora_weights.safetensors") == 1


def test_collections(hub, alice):
    """A collection is created once, takes each item once, and shows a private one's items to its owner."""
    api = HfApi()
    hub.add("model", "alice/x", {})
    hub.add("dataset", "alice/x", {})
    made = api.create_collection("SCoFT: Korea", description="all of it", private=True)
    assert made.slug.startswith("alice/scoft-korea-") and made.private and made.description == "all of it"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_collection("SCoFT: Korea")
    assert api.create_collection("SCoFT: Korea", exists_ok=True).slug == made.slug

    api.add_collection_item(made.slug, "alice/x", "model", note="the LoRA")
    found = api.add_collection_item(made.slug, "alice/x", "dataset")
    assert [(item.item_type, item.item_id, item.note) for item in found.items] == [
        ("model", "alice/x", "the LoRA"),
        ("dataset", "alice/x", None),
    ]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.add_collection_item(made.slug, "alice/x", "model")
    assert len(api.add_collection_item(made.slug, "alice/x", "model", exists_ok=True).items) == 2
    with pytest.raises(RepositoryNotFoundError):
        api.add_collection_item(made.slug, "alice/none", "model")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.add_collection_item(made.slug, "alice/x", "model", token="hf_alice_read")
    with pytest.raises(HfHubHTTPError, match="404"):
        api.get_collection(made.slug, token="hf_bob")


# Faults and large files ----------------------------------------------------------------------------------------------


def put(data=b"b" * 100_000):
    return HfApi().upload_file(path_or_fileobj=data, path_in_repo="b.txt", repo_id="alice/x")


def test_refusals_on_demand(hub, alice):
    """A fault meets the requests it is for, as often as it says: the client waits and repeats, or gives up."""
    hub.add("model", "alice/x", {})
    hub.fail("POST", "/preupload/", status=503)
    hub.fail("POST", "/preupload/", status=429, headers={"Retry-After": "0"})
    hub.fail("POST", "/commit/", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        put()
    assert hub.asked("/preupload/") == 3 and hub.asked("/commit/") == 1
    assert "b.txt" not in hub.repos["model", "alice/x"].files
    put()
    assert "b.txt" in hub.repos["model", "alice/x"].files


def test_a_request_or_its_answer_is_cut(hub, alice):
    """Hung up on half-way, an upload does nothing; if its answer is cut it has done all; a download goes on."""
    hub.add("model", "alice/x", {})
    repo = hub.repos["model", "alice/x"]
    hub.cut("POST", "/commit/")
    with pytest.raises(HTTPError):
        put()
    assert "b.txt" not in repo.files
    assert hub.requests[-1].size == int(hub.requests[-1].headers["content-length"]) // 2 > 50_000

    hub.cut("POST", "/commit/", answer=True)
    with pytest.raises(HTTPError):
        put()
    assert repo.files["b.txt"] == b"b" * 100_000

    chunk = huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE
    data = b"a" * chunk + b"b" * chunk + b"c" * chunk
    hub.add("model", "alice/x", {"large.bin": data})
    hub.cut("GET", "/resolve/main/large.bin", answer=True)
    assert Path(hf_hub_download("alice/x", "large.bin")).read_bytes() == data
    assert hub.asked("GET /alice/x/resolve/main/large.bin") == 2
    assert hub.requests[-1].headers["range"] == f"bytes={chunk}-"
    assert HfFileSystem().read_bytes("alice/x/large.bin", start=chunk - 1, end=chunk + 1) == b"ab"


def test_large_files_by_lfs(tmp_path):
    """Binary files are sent beside the commit and without the token, once for each content, and again if cut."""
    data = bytes(100_000)
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "a.txt").write_text("text")
    with contextlib.closing(Hub(users={"hf_carol": "carol"}, upload_mode="lfs")) as hub:
        api = HfApi(endpoint=hub.url, token="hf_carol")
        api.create_repo("carol/x", repo_type="dataset")
        hub.cut("PUT", "^/lfs/")
        api.upload_folder(repo_id="carol/x", repo_type="dataset", folder_path=tmp_path)
        assert hub.repos["dataset", "carol/x"].files["a.bin"] == data
        puts = [request for request in hub.requests if request.method == "PUT"]
        assert [request.size for request in puts] == [50_000, 100_000]
        assert not any("authorization" in request.headers for request in puts)
        assert hub.requests[-1].size < 1000

        file = api.hf_hub_download("carol/x", "a.bin", repo_type="dataset", cache_dir=tmp_path / "cache")
        assert Path(file).read_bytes() == data
        (entry,) = api.get_paths_info("carol/x", "a.bin", repo_type="dataset")
        assert entry.lfs.sha256 == Path(file).resolve().name and entry.lfs.size == 100_000

        api.create_repo("carol/y")
        api.upload_file(path_or_fileobj=data, path_in_repo="b.bin", repo_id="carol/y")
        assert hub.repos["model", "carol/y"].files["b.bin"] == data and hub.asked("PUT") == 2
        assert get_session().put(f"{hub.url}/lfs/{entry.lfs.sha256}", content=data[1:]).status_code == 400


def test_one_connection_serves_many_requests(hub):
    """Answers of all kinds leave the connection in order for the next request."""
    hub.add("model", "alice/x", {"a.txt": b"a"})
    with contextlib.closing(http.client.HTTPConnection(hub.url.removeprefix("http://"))) as line:
        line.connect()
        socket = line.sock
        for method, path, body, status in [
            ("HEAD", "/alice/x/resolve/main/a.txt", None, 200),
            ("HEAD", "/alice/x/resolve/main/none", None, 404),
            ("POST", "/api/repos/create", json.dumps({"name": "y", "organization": None}), 401),
            ("GET", "/alice/x/resolve/main/a.txt", None, 200),
        ]:
            line.request(method, path, body)
            answer = line.getresponse()
            assert answer.status == status and bool(answer.read()) == (method != "HEAD")
            assert line.sock is socket
