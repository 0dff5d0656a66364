"""The image of a slice for tests, from the project's own Dockerfile but without any registry.

What it begins with is a small Debian, made once by debootstrap; the built image is kept as a file. Both lie in
a cache outside the tree: $QUEUNIR_TRIO_CACHE, or ~/.cache/queunir-trio. As the machine's own pip reaches an index,
so does the one that runs during the build.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker

from tests.docker_engine import Engine, absent, engine, outward

ROOT = Path(__file__).parent.parent
DEBIAN = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
BASE = f"queunir-base:{DEBIAN}-1"  # a new number where what follows makes another image of the same packages
IMAGE = "wank-slice:test"
KEPT = 2  # built images; older ones are of sources that have changed
NOT_NEEDED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")
CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")


def cache() -> Path:
    """Where what takes long is kept between runs."""
    return Path(os.environ.get("QUEUNIR_TRIO_CACHE") or Path.home() / ".cache" / "queunir-trio")


def load(into: Engine) -> str:
    """Gives an engine the image of today's sources, built if need be; the image's name."""
    with _built().open("rb") as file, into.client(timeout=120) as client:
        for _ in client.load_image(file, quiet=True):
            pass
    return IMAGE


def context() -> dict[str, bytes]:
    """All that the Dockerfile may copy, by path."""
    paths = [*ROOT.glob("deploy/slice/*"), *ROOT.glob("queunir_slice/**/*")]
    return {
        str(path.relative_to(ROOT)): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and "__pycache__" not in path.parts
    }


def _built() -> Path:
    digest = hashlib.sha256(BASE.encode())
    for name, content in context().items():
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    kept = cache() / f"slice-{digest.hexdigest()[:16]}.tar"
    with _locked(cache() / "lock"):
        if not kept.exists():
            _build(kept)
            for old in sorted(cache().glob("slice-*.tar"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
                old.unlink()
    return kept


def _build(kept: Path) -> None:
    with engine(cache() / "builder", offline=False) as builder, builder.client(timeout=600) as client:
        if not client.images(BASE):
            _import_base(client)
        arguments = {"BASE": BASE, **_index()}
        said = list(
            client.build(
                fileobj=_archive(context()),
                custom_context=True,
                dockerfile="deploy/slice/Dockerfile",
                buildargs=arguments,
                network_mode="host",
                tag=IMAGE,
                rm=True,
                forcerm=True,
                decode=True,
            )
        )
        if not client.images(IMAGE) or any("error" in line for line in said):
            raise RuntimeError("".join(line.get("stream", line.get("error", "")) for line in said)[-3000:])
        unfinished = kept.with_suffix(".new")
        with unfinished.open("wb") as file:
            file.writelines(client.get_image(IMAGE))
        unfinished.replace(kept)
        client.prune_images()


def _import_base(client: docker.APIClient) -> None:
    with tempfile.TemporaryDirectory(prefix="queunir-base-") as directory:
        root = Path(directory, "root")
        bootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root)]
        subprocess.run(outward(bootstrap), check=True, stdout=subprocess.DEVNULL)
        for name in NOT_NEEDED:
            shutil.rmtree(root / name)
            (root / name).mkdir()
        # who may vouch for an index is the machine's business
        shutil.copyfile(Path("/") / CERTIFICATES, root / CERTIFICATES)
        archive = Path(directory, "root.tar")
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
        client.import_image_from_file(str(archive), *BASE.split(":"))


def _index() -> dict[str, str]:
    """Where the machine's pip looks for packages, as far as that can be reached from inside a container."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = {"PIP_CERT": f"/{CERTIFICATES}"}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        addresses = " ".join(part for part in value.strip("'\"").split() if part.startswith("http"))
        for option in ("index-url", "extra-index-url"):
            if name.endswith(f".{option}") and addresses:
                found[f"PIP_{option.upper().replace('-', '_')}"] = addresses
    return found


def _archive(files: dict[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)  # with a time and an owner that never change, so that layers are found again
            entry.size = len(content)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(content))
    stream.seek(0)
    return stream


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":  # beforehand, so that no test has to wait for it
    if absent() is None:
        print(f"the image of slices for tests: {_built()}")
