"""The collector: what it sees on this machine and in folders of our own; it only reads, hangs on nothing, tells no secret."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.nodes import probe

FILE = Path(probe.__file__)
SECRET = b"a munge key, say\n"


def run(*words: str, code: int = 0, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-S", "-" if stdin is not None else str(FILE), *words]
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, cwd="/"
    )
    assert done.returncode == code, done.stderr
    return done


def seen(*words: str, **environment: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(run(*words, **environment).stdout)
    return value


def site(folder: Path, **parts: Any) -> Path:
    file = folder / "site.json"
    file.write_text(json.dumps({"name": "plain", **parts}))
    return file


def environment(folder: Path, **versions: str) -> Path:
    """A Python environment of distributions, as pip writes them."""
    packages = folder / "lib" / "python3.11" / "site-packages"
    for name, version in versions.items():
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (packages / name).mkdir()
        code = f"VERSION = {version!r}\n"
        (packages / name / "__init__.py").write_text(code)
        digest = hashlib.sha256(code.encode()).hexdigest()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(
            f"{name}/__init__.py,sha256={digest},{len(code)}\n{name}/__pycache__/__init__.pyc,,\n"
            f"../../../bin/{name},sha256={hashlib.sha256(str(folder).encode()).hexdigest()},9\n"
        )
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
    return folder


def test_it_is_standard_library_only_and_speaks_python_3_9() -> None:
    for name in ("probe.py", "check.py"):
        tree = ast.parse((FILE.parent / name).read_text(), feature_version=(3, 9))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
                tops = {each.partition(".")[0] for each in names}
                assert tops <= sys.stdlib_module_names | {"phenomhpc"}, names
                assert name == "check.py" or "phenomhpc" not in tops
        assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))


def test_this_machine_has_a_fingerprint() -> None:
    found = seen("--env", sys.prefix)
    assert found["silent"] == {} and found["host"]
    assert found["values"]["kernel"] == os.uname().release
    assert len(found["values"]["python.environment"]) == 32
    installed = found["python"]["distributions"]
    assert installed["pydantic"].split()[0] and found["values"]["python.torch"] == installed["torch"].split()[0]
    if Path("/usr/bin/dpkg-query").exists():
        said = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", "dpkg"], capture_output=True, text=True, check=True
        ).stdout
        assert found["packages"]["versions"]["dpkg"] == said and "dpkg" in found["packages"]["versions"]


def test_two_looks_at_one_machine_are_one_digest() -> None:
    first, second = seen("--short"), seen("--short")
    assert first["digest"] == second["digest"] and first["values"] == second["values"]
    assert "packages" not in first and len(first["values"]["packages"]) == 16


def test_it_runs_from_a_pipe_with_a_lock_inside(tmp_path: Path) -> None:
    text = FILE.read_text().replace(
        'GIVEN_SITE = ""\n', f"GIVEN_SITE = {json.dumps({'sysctls': {'kernel.ostype': '1'}})!r}\n"
    )
    found = json.loads(run("--site", str(tmp_path / "gone"), stdin=text).stdout)
    assert found["sysctls"]["live"]["kernel.ostype"] == "Linux"


def test_it_writes_nothing(tmp_path: Path) -> None:
    managed = tmp_path / "managed"
    managed.mkdir()
    (managed / "a.conf").write_text("a = 1\n")
    lock = site(tmp_path, managed={"directories": [{"path": str(managed)}]}, packages=[{"name": "dpkg"}])
    trace = tmp_path / "trace"
    argv = ["strace", "-f", "-qq", "-e", "trace=%file", "-o", str(trace), sys.executable, "-I", "-S", str(FILE)]
    done = subprocess.run([*argv, "--site", str(lock)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    changing = re.compile(
        r"O_WRONLY|O_RDWR|O_CREAT|^\d+ (unlink|rename|mkdir|rmdir|symlink|link|f?chmod|f?chown|truncate|mknod)"
    )
    lines = [line for line in trace.read_text().splitlines() if changing.search(line)]
    # apt keeps what it made of its lists in a scratch file without a name, since it is told to keep no cache.
    scratch = re.compile(r'"/dev/(null|tty)"|O_TMPFILE|"/tmp/fileutl\.message')
    assert [line for line in lines if not scratch.search(line)] == []


def test_what_hangs_is_named_and_killed() -> None:
    def hang() -> None:
        subprocess.run(["sleep", "600"], check=False)

    def fail() -> None:
        raise RuntimeError("no such thing")

    sections: dict[str, Callable[[], Any]] = {"good": lambda: 1, "hang": hang, "bad": fail, "dead": lambda: os._exit(3)}
    began = time.monotonic()
    values, silent, seconds = probe.gather(sections, 0.5)
    assert time.monotonic() - began < 5
    assert values == {"good": 1} and set(seconds) == {"good", "bad", "dead"}
    assert silent["hang"] == "no answer within 0.5 s" and silent["bad"] == "RuntimeError: no such thing"
    assert silent["dead"].startswith("it died")
    argv = ["pgrep", "-f", "^sleep 600$"]
    time.sleep(0.2)
    assert subprocess.run(argv, capture_output=True, text=True).stdout == "", "what a child started is killed with it"


def test_files_are_listed_with_mode_owner_and_content(tmp_path: Path) -> None:
    folder = tmp_path / "managed"
    (folder / "below").mkdir(parents=True)
    (folder / "a.conf").write_text("a\n")
    (folder / "a.conf").chmod(0o640)
    (folder / "below" / "b.conf").write_text("b\n")
    (folder / "link").symlink_to("a.conf")
    lock = site(
        tmp_path,
        managed={"directories": [{"path": str(folder)}], "files": [{"path": str(tmp_path / "gone")}]},
    )
    files = seen("--site", str(lock))["files"]
    assert set(files) == {
        str(folder / "a.conf"),
        str(folder / "below" / "b.conf"),
        str(folder / "link"),
        str(tmp_path / "gone"),
    }
    assert files[str(tmp_path / "gone")] is None
    first = files[str(folder / "a.conf")]
    assert first["mode"] == "0640" and first["sha256"] == hashlib.sha256(b"a\n").hexdigest() and "package" not in first
    assert files[str(folder / "link")]["link"] == "a.conf"


@pytest.mark.skipif(not Path("/usr/bin/dpkg-query").exists(), reason="Debian's packages")
def test_files_of_packages_are_told_from_strays(tmp_path: Path) -> None:
    folder = Path("/etc/cron.daily") if Path("/etc/cron.daily").is_dir() else Path("/etc/apt/apt.conf.d")
    files = seen("--site", str(site(tmp_path, managed={"directories": [{"path": str(folder)}]})))["files"]
    assert files and any("package" in each for each in files.values())


def test_a_secret_is_told_as_a_keyed_digest(tmp_path: Path) -> None:
    key = tmp_path / "munge.key"
    key.write_bytes(SECRET)
    key.chmod(0o400)
    managed = {"directories": [{"path": str(tmp_path)}], "files": [{"path": str(key), "secret": True}]}
    text = run("--site", str(site(tmp_path, managed=managed))).stdout
    told = json.loads(text)["files"][str(key)]
    assert told["sha256"].startswith("keyed:") and told["mode"] == "0400"
    assert hashlib.sha256(SECRET).hexdigest() not in text and hashlib.md5(SECRET).hexdigest() not in text
    assert SECRET.decode().strip() not in text
    other = run("--site", str(site(tmp_path, managed=managed, name="other"))).stdout
    assert json.loads(other)["files"][str(key)]["sha256"] != told["sha256"], "the site's name is part of it"
    key.chmod(0o600)
    key.write_bytes(SECRET + b"x")
    assert (
        json.loads(run("--site", str(site(tmp_path, managed=managed))).stdout)["files"][str(key)]["sha256"]
        != told["sha256"]
    )


def test_sysctl_files_are_read_in_systemds_order(tmp_path: Path) -> None:
    etc, run_, lib = (tmp_path / name for name in ("etc", "run", "lib"))
    for folder in (etc, run_, lib):
        folder.mkdir()
    (lib / "50-base.conf").write_text("net.a = lib\nnet.b = lib\n")
    (lib / "60-x.conf").write_text("net.c = lib\n")
    (etc / "60-x.conf").write_text("# takes the place of lib's\n-net.b = etc\n")
    (run_ / "70-y.conf").write_text("net/ipv4/conf/eth0.5/mtu = 9000\n; no\nnet.a\t=  1   2\n")
    last = tmp_path / "sysctl.conf"
    last.write_text("net.b = last\n")
    paths = probe.sysctl_files((str(etc), str(run_), str(lib)), str(last))
    assert [Path(path).name for path in paths] == ["50-base.conf", "60-x.conf", "70-y.conf", "sysctl.conf"]
    said: dict[str, str] = {}
    for path in paths:
        said |= dict(probe.parse_sysctls(Path(path).read_bytes()))
    assert said == {"net.a": "1 2", "net.b": "last", "net.ipv4.conf.eth0/5.mtu": "9000"}
    assert probe.sysctl_path("net.ipv4.conf.eth0/5.mtu") == "net/ipv4/conf/eth0.5/mtu"
    (etc / "99-sysctl.conf").symlink_to(last)
    assert [Path(path).name for path in probe.sysctl_files((str(etc),), str(last))] == ["60-x.conf", "99-sysctl.conf"]


def test_a_python_environment_is_its_installed_set(tmp_path: Path) -> None:
    one = probe.python_environment(str(environment(tmp_path / "one", numpy="2.1.0", torch="2.13.0")))
    two = probe.python_environment(str(environment(tmp_path / "two", numpy="2.1.0", torch="2.13.0")))
    assert one["environment"] == two["environment"] and one["version"] == "3.11.7"
    assert {name: text.split()[0] for name, text in one["distributions"].items()} == {
        "numpy": "2.1.0",
        "torch": "2.13.0",
    }
    info = tmp_path / "two" / "lib" / "python3.11" / "site-packages" / "numpy-2.1.0.dist-info"
    (info / "RECORD").write_text((info / "RECORD").read_text().replace("sha256=", "sha256=0", 1))
    three = probe.python_environment(str(tmp_path / "two"))
    assert three["environment"] != one["environment"], "other files under the same version"
    assert (
        probe.python_environment(str(environment(tmp_path / "four", numpy="2.2.0", torch="2.13.0")))["environment"]
        != one["environment"]
    )
    assert probe.python_environment(str(tmp_path / "gone")) == {"path": str(tmp_path / "gone"), "absent": True}


def test_gpus_are_those_that_nvidia_smi_tells(tmp_path: Path) -> None:
    """The form of NVIDIA's documentation; never seen on such hardware by this project."""
    program = tmp_path / "nvidia-smi"
    row = "NVIDIA H100 80GB HBM3, 570.133.20, 96.00.A5.00.01, 81559 MiB"
    program.write_text(f'#!/bin/sh\nprintf "{row}\\n{row}\\n"\n')
    program.chmod(0o755)
    found = seen("--short", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (
        found["values"]["nvidia.driver"] == "570.133.20" and found["values"]["nvidia.model"] == "NVIDIA H100 80GB HBM3"
    )
    program.write_text('#!/bin/sh\necho "Failed to initialize NVML: Driver/library version mismatch"\nexit 18\n')
    found = seen("--short", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert found["silent"] == {
        "nvidia": f"RuntimeError: {program}: Failed to initialize NVML: Driver/library version mismatch"
    }
    assert "nvidia.driver" not in found["values"]


def test_what_the_roles_wrote_is_recorded_and_nothing_else(tmp_path: Path) -> None:
    folder, manifest = tmp_path / "managed", tmp_path / "manifest.json"
    folder.mkdir()
    (folder / "ours.conf").write_text("1\n")
    (folder / "stray.conf").write_text("1\n")
    managed = {"directories": [{"path": str(folder)}], "files": [{"path": str(folder / "ours.conf")}]}
    words = ("--site", str(site(tmp_path, managed=managed)), "--env", str(environment(tmp_path / "env", numpy="2.1.0")))
    assert run(*words, "--record", str(manifest)).stdout == "changed\n"
    assert run(*words, "--record", str(manifest)).stdout == "unchanged\n"
    first = json.loads(manifest.read_text())
    assert list(first["files"]) == [str(folder / "ours.conf")] and first["python"]["distributions"]["numpy"]
    (folder / "ours.conf").write_text("2\n")
    assert run(*words, "--record", str(manifest)).stdout == "changed\n"
    # An environment's folder is named by its version: what is found changed in it later is no new truth.
    info = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "numpy-2.1.0.dist-info"
    info.rename(info.with_name("numpy-9.9.dist-info"))
    assert run(*words, "--record", str(manifest)).stdout == "unchanged\n"
    assert run(*words, "--record", str(manifest), "--accept-packages").stdout == "changed\n"


def test_wrong_words_are_refused_in_one_line(tmp_path: Path) -> None:
    assert "probe: --foo: no such option" in run("--foo", code=2).stderr
    (tmp_path / "site.json").write_text("{")
    assert run("--site", str(tmp_path / "site.json"), code=2).stderr.startswith("probe: ")
