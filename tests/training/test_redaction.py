"""Names, places and secrets leave a text in every form that they take; figures and music stay."""

import json
from pathlib import Path

import pytest

from meloformer.training.redaction import Machine, Redactor, this_machine

MACHINE = Machine(
    users=frozenset({"alice", "root"}),
    hosts=frozenset({"gpu-node-7", "gpu-node-7.lab.example.edu", "localhost"}),
    folders=(("/mnt/team/alice/meloformer", "<repository>"), ("/export/alice", "~")),
    secrets=frozenset({"correct horse battery"}),
)

# A text, and what must not be left of it.
PLANTED = [
    ("HF_TOKEN=qwerty", "qwerty"),
    ("export WANDB_API_KEY='qwerty uiop'", "uiop"),
    ('{"aws_secret_access_key": "qwerty"}', "qwerty"),
    ("'password': 'qwerty'", "qwerty"),
    ("api-key: 12ab34cd", "12ab34cd"),
    ("Authorization: Bearer qwertyuiop", "qwertyuiop"),
    ("--hf_token qwerty --seed 0", "qwerty"),
    ("--password=123456", "123456"),
    ("hf_abcdefghijklmnopqrstuvwxyz", "abcdefghijkl"),
    ("pushed with ghp_0123456789abcdef", "0123456789abcdef"),
    ("key AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
    ("wandb login " + "0123456789" * 4, "0123456789"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "c2lnbmF0"),
    ("Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZmdoSUpL", "Zm9vYmFy"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
    ("it was correct horse battery all along", "horse"),
    ("s3://team-bucket/shards?X-Amz-Signature=abc", "team-bucket"),
    ("https://me:qwerty@host.example/x", "qwerty"),
    ("https://host.example/hook/T000/B111", "T000"),
    ("File /home/bob/work/x.py", "bob"),
    ("/lustre/home/bob/x", "bob"),
    ("/Users/bob/x.py", "bob"),
    (r"C:\Users\bob\x.py", "bob"),
    (r'{"path": "C:\\Users\\bob\\x.py"}', "bob"),
    ("bob wrote to /scratch/bob/x", "bob"),
    ("~bob/x", "bob"),
    ("/mnt/team/alice/meloformer/launch/train.py", "team"),
    ("alice_scratch and alice", "alice"),
    ("SLURM_JOB_USER=carol; later carol again", "carol"),
    ("on gpu-node-7 and gpu-node-7.lab.example.edu", "node-7"),
    ("MASTER_ADDR=head17.cluster and head17.cluster", "head17"),
    ("  host      : dgx-03\nlost dgx-03", "dgx-03"),
    ("SLURM_JOB_NODELIST=dgx-[01-16]\nlost dgx-09", "dgx-09"),
    ("worker-3.train.svc.cluster.local:29500", "worker-3"),
    ("login.hpc.university.edu is down", "university"),
    ("connect to 10.1.2.3:29500", "10.1.2.3"),
    ("addr=192.168.17.4", "192.168"),
    ("[fe80::1ff:fe23:4567:890a%eth0]:29500", "fe23"),
    ("fe80::1 is not reachable", "fe80"),
    ("mail bob@example.org", "bob"),
    ("/mnt/home2/bob/x", "bob"),
    ("/storage/homes/bob/x", "bob"),
    ("password: 123456", "123456"),
    ("api key: qwerty12", "qwerty12"),
    ("DB_PASS=qwerty and pw=qwerty", "qwerty"),
    ("gpu-node-7.secret-lab.internal", "secret-lab"),
    ("git@github.com:team-name/project.git", "team-name"),
]

KEPT = [
    "step 10/200, epoch 0, loss 4.1234, lr 1.00e-03, grad norm 0.512, 12,345 tokens/s, eta 0:01:02",
    "validation after step 4: 3.1415 nats per token and 9.265 per note with all attributes",
    '{"tokens": 4096, "tokens_per_second": 123.5, "per_token": 1.25, "KEY": 0.5, "key": "C major"}',
    "found token 976, allowed 0 to 975; --key C --time_signature 4/4 --keep_last 3",
    "tokenizer 0f3c" + "0f" * 30,
    "2026-11-22 14:04:34,707 INFO saved <run>/checkpoints/step-500",
    "nvidia-cudnn-cu12==9.10.2.21",
    "127.0.0.1:29500 and localhost",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError",
    "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/module.py, line 1776",
    "fp32, ZeRO stage 2, 8 ranks on NVIDIA H100 80GB HBM3, driver 580.65.06, sm_90",
    "aten::mm at::native x[::2]",
]


@pytest.mark.parametrize(("text", "planted"), PLANTED, ids=[text[:30] for text, _ in PLANTED])
def test_what_is_planted_is_not_left(text: str, planted: str) -> None:
    redactor = Redactor(MACHINE)
    redactor.learn([text])
    assert planted not in redactor.text(text)
    assert planted not in json.dumps(redactor.json({"note": [text]}))
    assert planted not in redactor.lines(json.dumps({"note": text}) + "\n")
    # In the words of an error that quotes a JSON text.
    assert planted not in redactor.text(json.dumps({"note": text}))


@pytest.mark.parametrize("text", KEPT)
def test_figures_music_and_versions_stay(text: str) -> None:
    redactor = Redactor(MACHINE)
    redactor.learn([text])
    assert redactor.text(text) == text


def test_a_name_of_one_file_goes_from_all() -> None:
    redactor = Redactor(Machine())
    redactor.learn(["/home/bob/x", "host: dgx-3"])
    assert redactor.text("bob lost dgx-3") == "<user> lost <host>"


def test_secrets_of_a_command_go_whether_they_follow_or_are_joined() -> None:
    command = ["train.py", "--hf_token", "qwerty", "--password=qwerty", "--seed", "0", "--token"]
    assert Redactor(Machine()).json(command) == [
        *("train.py", "--hf_token", "<secret>", "--password=<secret>", "--seed", "0", "--token"),
    ]


def test_numbers_named_like_secrets_stay_numbers() -> None:
    data = {"per_token": 1.25, "tokens": 5, "hf_token": "qwerty", "token": None, "auth": ""}
    assert Redactor(Machine()).json(data) == data | {"hf_token": "<secret>"}


def test_words_that_somebody_names_go() -> None:
    assert Redactor(Machine(), ("moonshot",)).text("project moonshot, moonshot2") == (
        "project <secret>, <secret>2"
    )


def test_the_machine_knows_its_user_its_host_its_folders_and_its_secrets(tmp_path: Path) -> None:
    variables = {
        "HOME": "/export/people/dora",
        "USER": "dora",
        "HOSTNAME": "box9.lab",
        "WANDB_API_KEY": "abcdef123",
        "HF_TOKEN": "x",
        "SSH_AUTH_SOCK": "/tmp/ssh/agent",
        "PWD": "/work",
    }
    machine = this_machine({tmp_path: "<run>"}, environment=variables)
    assert {"dora"} <= machine.users and {"box9.lab", "box9"} <= machine.hosts
    assert machine.secrets == {"abcdef123"}, "not what is too short to be one, and no folder"
    text = f"{tmp_path}/train.log, /export/people/dora/x, abcdef123"
    assert Redactor(machine).text(text) == "<run>/train.log, ~/x, <secret>"
