"""Manifests that run a sweep's workers elsewhere: a Kubernetes JobSet, and a command for a TPU queued resource.

They are printed, not sent. Both start `lmjax sweep --worker` in a folder that all workers see and that a command with
`--run` has written before.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from lmjax.errors import FlagError

KINDS = ("jobset", "queued_resource")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


def sweep_name(directory: str) -> str:
    """Returns a name that Kubernetes and Google Cloud accept, made from the folder of a sweep."""
    plain = re.sub(r"[^a-z0-9]+", "-", directory.lower()).strip("-")[-32:].strip("-")
    name = plain if plain[:1].isalpha() else f"sweep-{plain}".strip("-")
    assert _NAME.fullmatch(name), name
    return name


def command(directory: str, since: str) -> list[str]:
    """Returns the command of a worker."""
    return ["lmjax", "sweep", f"--workdir={directory}", "--worker", f"--since={since}"]


def jobset(directory: str, count: int, since: str, *, image: str, claim: str, mount: str) -> dict[str, Any]:
    """Returns a JobSet (jobset.x-k8s.io/v1alpha2) with one Job of `count` workers.

    A worker that ends with another code than 0 is started again: it resumes its runs.

    Args:
        directory: the folder of the sweep, as the workers see it.
        count: number of workers.
        since: when the sweep was launched, as of `Launcher`.
        image: the container image.
        claim: the PersistentVolumeClaim that holds the folder.
        mount: where it is mounted.

    Raises:
        FlagError: the folder is not below the mount.
    """
    if not directory.startswith(f"{mount.rstrip('/')}/"):
        raise FlagError(f"--workdir={directory}: is not below {mount}, where the workers mount the volume; move it")
    worker = {
        "name": "worker",
        "image": image,
        "command": command(directory, since),
        "volumeMounts": [{"name": "sweeps", "mountPath": mount}],
    }
    pod = {
        "restartPolicy": "OnFailure",
        # A run saves its state within this time after SIGTERM.
        "terminationGracePeriodSeconds": 120,
        "containers": [worker],
        "volumes": [{"name": "sweeps", "persistentVolumeClaim": {"claimName": claim}}],
    }
    job = {
        "completions": count,
        "parallelism": count,
        "completionMode": "Indexed",
        "backoffLimit": 10 * count,
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": sweep_name(directory)},
        "spec": {"replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}]},
    }


def queued_resource(directory: str, count: int, since: str, *, accelerator: str, runtime: str) -> str:
    """Returns `gcloud` commands that ask for `count` TPUs, each of which runs a worker when it is there.

    Args:
        directory: the folder of the sweep, on a file system that all of them mount.
        count: number of TPUs, each of one host.
        since: when the sweep was launched, as of `Launcher`.
        accelerator: the type of TPU.
        runtime: the version of its software.
    """
    name, startup = sweep_name(directory), shlex.join(command(directory, since))
    return "\n".join(
        shlex.join(
            [
                *("gcloud", "compute", "tpus", "queued-resources", "create", f"{name}-{number}"),
                f"--node-id={name}-{number}",
                f"--accelerator-type={accelerator}",
                f"--runtime-version={runtime}",
                "--spot",
                f"--metadata=startup-script=#! /bin/bash\n{startup}",
            ]
        )
        for number in range(count)
    )


def printed(kind: str, directory: str, count: int, since: str) -> str:
    """Returns what `--print` prints; names in capitals are for the user to fill in."""
    if kind == "jobset":
        mount = directory.rpartition("/")[0] or "/sweeps"
        return json.dumps(jobset(directory, count, since, image="IMAGE", claim="CLAIM", mount=mount), indent=2)
    return queued_resource(directory, count, since, accelerator="v5litepod-8", runtime="v2-alpha-tpuv5-lite")
