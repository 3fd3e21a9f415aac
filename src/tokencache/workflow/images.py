"""Container images for the jobs: what names them, how they are built, what a job in one sees."""

from __future__ import annotations

import argparse
import ast
import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..base.credentials import hidden, is_secret
from ..base.hashing import hash_file, key_of
from ..base.job_status import reporting
from ..base.json_files import read_json, write_json
from ..base.manifest import beside
from ..base.progress import growing
from ..base.publish import published
from ..errors import UserError
from ..plan.plan import INDEX, Plan, progress_path
from ..sources.identity import file_digests
from ..sources.index import Index

NAMES = ("tokenize", "train")
FOLDER = "images"
DIGITS = 12
DEBIAN = "bookworm"  # its Python is 3.11, which the locks are for
PACKAGES = "python3,python3-venv,ca-certificates"
COMPRESSION = "-comp gzip -Xcompression-level 2"  # 7 % larger in a third of the time
DOCS = "see docs/containers.md"
OTHER_BYTES = "it is not as it was built"
BUILD_AGAIN = "delete it, and the next run builds it again"

# What jobs need of the environment, where a container is started with nothing of it. No secrets:
# what needs those, such as a gated model of a hub, is fetched outside of containers.
PASSED = re.compile(
    r"(HF|TRANSFORMERS|TOKENIZERS|OMP|RAYON|DATASET|CUDA|NCCL|GLOO|MASTER|(TOKENCACHE_)?SLURMD?)_"
)
# A job sees nothing of the machine but what it is shown, and no network; a user's own
# settings of these names win.
NO_NETWORK = {"APPTAINER_NET": "1", "APPTAINER_NETWORK": "none"}
ISOLATION = {"APPTAINER_CONTAINALL": "1"} | NO_NETWORK

MOST_FOLDERS = 200  # that are shown one by one

# Folders of an image's own: a host's can't be laid over them.
SYSTEM = {"bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var"}


def image_path(checkout: Path, name: str, base: str) -> str:
    """Where an image is, by its definition, its locked dependencies and what it starts from."""
    definition = (checkout / "containers" / f"{name}.def").read_text()
    lock = (checkout / "envs" / f"{name}.lock").read_text()
    key = key_of({"definition": definition, "lock": lock, "base": base})
    return f"{FOLDER}/{name}-{key[:DIGITS]}.sif"


def build(base: str, image: str, checkout: Path) -> None:
    """Build an image and test it; it appears at its path whole or not at all.

    base: debian, a folder or an image of this machine, or a URL such as docker://NAME.
    pip takes this machine's settings, and the image keeps none of them.
    """
    _require("apptainer")
    name, _, _ = Path(image).stem.rpartition("-")
    space = os.environ.get("APPTAINER_TMPDIR")
    with (
        published(image, keyed=True) as made,
        tempfile.TemporaryDirectory(dir=space) as work,
        growing(f"build {Path(image).name}", Path(work), made.parent),
    ):
        settings = Path(work, "pip")
        settings.mkdir()
        folders = pip_settings(settings)
        binds = [f"{settings}:/mnt:ro", *(f"{folder}:{folder}:ro" for folder in folders)]
        kind, place = _bootstrap(base, Path(work, "debian"))
        arguments = {"bootstrap": kind, "from": place, "image": Path(image).stem}
        command = ["apptainer", "build", "--mksquashfs-args", COMPRESSION]
        for key, value in arguments.items():
            command += ["--build-arg", f"{key}={value}"]
        for bind in binds:
            command += ["--bind", bind]
        command += [str(made.absolute()), str(checkout / "containers" / f"{name}.def")]
        # Here, so that one sees it grow.
        environment = _build_environment(folders) | {"APPTAINER_TMPDIR": work}
        _run(command, cwd=checkout, env=environment)
    # Of what stands there: another workflow may have built it too.
    write_json(beside(image), {"blake3": hash_file(image)})


def check(image: str) -> None:
    """Raises UserError for an image that is not what was built, or what its name says.

    One that was copied from elsewhere is only looked into.
    """
    _require("apptainer")
    if beside(image).exists():
        with Index(INDEX) as index:
            [digest] = file_digests([image], index)
        if digest != read_json(beside(image))["blake3"]:
            raise UserError(f"{image} is damaged ({OTHER_BYTES}); {BUILD_AGAIN}")
    # From inside: the labels can also be read of an image whose end is missing.
    command = ["apptainer", "--silent", "exec", image, "cat", "/.singularity.d/labels.json"]
    found = subprocess.run(command, capture_output=True, text=True)
    if f'"{Path(image).stem}"' not in found.stdout:
        why = (found.stderr.strip().splitlines() or ["it has another label"])[-1]
        raise UserError(f"{image} is damaged ({why}); {BUILD_AGAIN}")


def _bootstrap(base: str, folder: Path) -> tuple[str, str]:
    """A definition's Bootstrap and From for a base; for debian that is made, in a folder."""
    if base == "debian":
        make_debian(folder)
        base = str(folder)
    kind, _, place = base.partition("://") if "://" in base else ("localimage", "", base)
    return kind, str(Path(place).absolute()) if kind == "localimage" else place


def _build_environment(folders: list[str]) -> dict[str, str]:
    """This machine's, without what is meant for the containers of jobs."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("APPTAINER_CACHEDIR", "APPTAINER_TMPDIR", "APPTAINER_CONFIGDIR")
        or not name.startswith(("APPTAINER", "SINGULARITY"))
    }
    # The scripts of a definition run with all of root's capabilities, and not at all where
    # the machine lacks one. This is the one that virtual machines lack; no build needs it.
    return kept | {
        "TOKENCACHE_FOLDERS": " ".join(folders),
        "SINGULARITY_DROP_CAPS": "CAP_SYS_RESOURCE",
    }


def pip_settings(folder: Path) -> list[str]:
    """Write pip's settings on this machine, files and environment in one, to folder/pip.conf.

    Returns the folders that a build must see for them: of a local index, all of
    its top folder, as an index points beside itself. Files that they name, such
    as certificates, come along, under the name that `folder` has in the build: /mnt.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    settings = configparser.RawConfigParser()
    folders: dict[str, None] = {}
    # The environment overrides what files say for all commands and for one.
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        section, _, option = key.replace(":env:", "install", 1).partition(".")
        if option == "config-file":
            continue  # what it says is listed
        words = []
        for word in str(ast.literal_eval(value)).split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.is_file():
                copy = shutil.copy(path, folder / f"{len(list(folder.iterdir()))}-{path.name}")
                word = f"/mnt/{Path(copy).name}"
            elif path.is_absolute() and path.is_dir():
                top = path if path.parts[1] in SYSTEM else Path(*path.parts[:2])
                folders[str(top)] = None
            words.append(word)
        if not settings.has_section(section):
            settings.add_section(section)
        settings.set(section, option, "\n".join(words))
    with open(folder / "pip.conf", "w", encoding="utf-8") as stream:
        settings.write(stream)
    return list(folders)


def make_debian(folder: Path) -> None:
    """Debian with Python in a folder, from the mirrors that this machine's apt uses."""
    _require("mmdebstrap")
    line = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    found = subprocess.run(
        ["apt-get", "indextargets", "--format", line, "Created-By: Packages", "Origin: Debian"],
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    sources = [source for source in found.splitlines() if f" {DEBIAN}" in source]
    if not sources:
        raise UserError(
            f"containers.base: debian needs apt sources of Debian {DEBIAN} that `apt-get update` "
            f"has read; {DOCS} for other bases"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".list") as file:
        file.write("\n".join(sources) + "\n")
        file.flush()
        command = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}"]
        # The image does not keep this machine's mirrors.
        command += ['--customize-hook=rm -f "$1"/etc/apt/sources.list.d/*']
        _run([*command, "--format=directory", DEBIAN, str(folder), file.name])


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"{program} is not installed: jobs in images need it on PATH; {DOCS}")


def _run(command: list[str], **more) -> None:
    status = subprocess.run(command, **more).returncode
    if status:
        raise UserError(f"{command[0]} failed with status {status}; what it said is above")


def job_environment(plan: Plan, checkout: Path) -> dict[str, str]:
    """What lets Apptainer show a job what it needs: inputs and code read-only, outputs not.

    Raises UserError where a path has what Apptainer takes for its own.
    """
    here = str(Path.cwd())
    if "'" in here or "\\" in here or not here.isprintable():
        # Snakemake writes it between such quotes into the command that starts a container.
        raise UserError(
            f"{here}: jobs in images can't run in a folder with a quote ('), a backslash or a "
            "control character in its path; rename it"
        )
    outputs = [Path.cwd(), *map(Path, (plan.cache, plan.results))]
    for folder in outputs:
        folder.mkdir(parents=True, exist_ok=True)
    shared = {path.resolve() for path in (*outputs, Path("/tmp"), Path(tempfile.gettempdir()))}
    binds = dict.fromkeys([*_inputs(plan, shared), checkout / "src"], "ro")
    binds |= dict.fromkeys(outputs, "rw")
    # As it is named and as what it is: a name can be a link to elsewhere.
    places = {
        str(place): mode
        for mode in ("ro", "rw")
        for path, given in binds.items()
        if given == mode
        for place in (path.absolute(), path.resolve())
    }
    for place in places:
        if "," in place or ":" in place:
            raise UserError(
                f"{place}: jobs in images can't be shown a path with a comma or a colon; rename it"
            )
    # Sorted, so that a folder's own mode comes after that of the one it lies in.
    own = [f"{place}:{place}:{mode}" for place, mode in sorted(places.items())]
    given = os.environ.get("APPTAINER_BIND")
    bind = ",".join([given, *own] if given else own)
    return {"APPTAINER_BIND": bind, "APPTAINERENV_PYTHONPATH": str(checkout / "src")}


def check_networks(plan: Plan) -> None:
    """Raises UserError where code that comes with a model would run beside an open network.

    The processes of a run on several nodes talk to each other, so their containers have one.
    """
    if os.environ.get("APPTAINER_NETWORK", "none") != "none":
        return  # the user has opened it for all jobs
    for path, run in plan.runs.items():
        trusts = run["trust_remote_code"] and run["training"]["nodes"] > 1
        if trusts and not os.path.exists(path):
            raise UserError(
                f"models.{run['model']}: with trust_remote_code: true and nodes: "
                f"{run['training']['nodes']}, code that comes with the model would run beside an "
                "open network, which several nodes need. Set nodes: 1, or APPTAINER_NETWORK=host "
                f"in your environment if that code may have the network; {DOCS}"
            )


def node_environment() -> dict[str, str]:
    """What a job needs of the machine that it runs on, and is kept from.

    Raises UserError where its folder for temporary files is somebody else's.
    """
    kept = {name: os.environ.get(name, value) for name, value in ISOLATION.items()}
    # In memory, as it would be without this, /tmp is small.
    own = Path(tempfile.gettempdir(), f"tokencache-{os.getuid()}")
    given = Path(os.environ.get("APPTAINER_WORKDIR", own))
    if given.name == own.name:  # not the user's wish; that of the login node, maybe
        given = own
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid != os.getuid():
            raise UserError(f"{own} is somebody else's; name a folder in APPTAINER_WORKDIR")
    passed = {
        f"APPTAINERENV_{name}": hidden(value)  # such as HF_ENDPOINT
        for name, value in os.environ.items()
        if PASSED.match(name) and not is_secret(name)
    }
    passed |= {"APPTAINERENV_PYTHONUNBUFFERED": "1", "APPTAINER_WORKDIR": str(given)}
    return kept | passed | ({"APPTAINER_NV": "1"} if Path("/dev/nvidiactl").exists() else {})


def _inputs(plan: Plan, shared: set[Path]) -> Iterable[Path]:
    """Folders of the sources and weights that config.yaml names.

    Of folders that hold more, `shared` with others or written to, the files themselves.
    """
    files = {shard["path"] for shard in plan.data["shards"].values() if "fetched" not in shard}
    given = [run["weights"] for run in plan.runs.values() if run["weights"]]
    named = [Path(file) for file in [*files, *(ref["path"] for ref in given if ref["path"])]]
    # A file can be a link too, so where it really is counts as well.
    found = {path.absolute() for path in (*named, *(path.resolve() for path in named))}
    alone = {path for path in found if path.parent.resolve() in shared and path.exists()}
    found = {path if path.is_dir() else path.parent for path in found - alone}
    folders = _fewer({folder for folder in found if folder.is_dir()})
    return [*alone, *(folder for folder in folders if not folders.intersection(folder.parents))]


def _fewer(folders: set[Path]) -> set[Path]:
    """Those above the deepest ones, as long as there are too many for an environment."""
    while len(folders) > MOST_FOLDERS and (depth := max(len(f.parts) for f in folders)) > 2:
        folders = {f.parent if len(f.parts) == depth else f for f in folders}
    return folders


def _reporting(image: str) -> AbstractContextManager[None]:
    """In here a build that a workflow started is seen by `tokencache status`."""
    plan = os.environ.get("TOKENCACHE_PLAN")
    if plan is None:
        return nullcontext()
    job = "build-image", image
    return reporting(progress_path(Path(plan).stem, *job), *job, socket.gethostname())


def main(argv: list[str] | None = None) -> int:
    command = argparse.ArgumentParser("tokencache.images", description="Build a job's image.")
    command.add_argument("--checkout", type=Path, default=Path())
    command.add_argument(
        "--base", required=True, help="debian, a folder, an image, or docker://NAME"
    )
    command.add_argument("image", help="where it goes: FOLDER/NAME-DIGITS.sif")
    arguments = command.parse_args(argv)
    try:
        with _reporting(arguments.image):
            build(arguments.base, arguments.image, arguments.checkout.absolute())
    except UserError as error:
        print(f"tokencache: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
