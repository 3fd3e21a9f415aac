"""The images that jobs run in with `--software-deployment-method apptainer`; without, nothing."""

import shlex
from functools import cache

from snakemake.settings.types import DeploymentMethod

from tokencache.workflow import images

containers = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
images_there = set()  # those that jobs of this run need, and that need not be built

if containers and not workflow.is_main_process:
    with without_traceback():
        os.environ.update(images.node_environment())


def image(name):
    """The image that a rule's jobs run in."""
    return images.image_path(CHECKOUT, name, settings.containers.base)


def no_image(wildcards):
    """For rules whose jobs run on the machine itself."""
    return None


@cache
def image_inputs(name):
    """The image that a job waits for: one that is missing."""
    if containers and Path(image(name)).exists():
        images_there.add(image(name))
        return []
    return [image(name)] if containers else []


def train_image(wildcards):
    """Not for several nodes, each of which starts its own container: see train_within."""
    return None if train_nodes(wildcards) else image("train")


def train_within(wildcards):
    """Words of the command line, for a run on several nodes."""
    if not containers or not train_nodes(wildcards):
        return []
    given = workflow.deployment_settings.apptainer_args
    command = f"apptainer exec --home {shlex.quote(os.getcwd())} {given} {image('train')}"
    return ["--within", command]


def prepare_containers():
    """Before jobs start: whole images, and what shows jobs what they may see."""
    if not containers:
        return
    for path in images_there:
        images.check(path)
    images.check_networks(plan)
    os.environ.update(images.job_environment(plan, CHECKOUT))
    os.environ.update(images.node_environment())


def say_lost_images():
    """Jobs fail when an image is deleted meanwhile."""
    for path in images_there:
        if not Path(path).exists():
            print(f"tokencache: {path} is gone; run again, which builds it first", file=sys.stderr)
