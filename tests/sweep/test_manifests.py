"""Manifests for other machines: they have the form that Kubernetes and gcloud ask for, and start the right worker."""

import json
import shlex

import pytest

from lmjax.errors import FlagError
from lmjax.sweep.manifests import jobset, printed, queued_resource, sweep_name

SINCE = "2026-01-01T00:00:00+00:00"

# The part of the schema of a JobSet (v1alpha2), and of the Job and the Pod in it, that is used here: fields by name,
# each with its type, those with a star required. Fields that are not listed are refused.
SCHEMA = {
    "apiVersion*": "jobset.x-k8s.io/v1alpha2",
    "kind*": "JobSet",
    "metadata*": {"name*": str},
    "spec*": {
        "replicatedJobs*": [
            {
                "name*": str,
                "replicas": int,
                "template*": {
                    "spec*": {
                        "completions": int,
                        "parallelism": int,
                        "completionMode": str,
                        "backoffLimit": int,
                        "template*": {
                            "spec*": {
                                "restartPolicy": str,
                                "terminationGracePeriodSeconds": int,
                                "containers*": [
                                    {
                                        "name*": str,
                                        "image*": str,
                                        "command": [str],
                                        "volumeMounts": [{"name*": str, "mountPath*": str}],
                                    }
                                ],
                                "volumes": [{"name*": str, "persistentVolumeClaim": {"claimName*": str}}],
                            }
                        },
                    }
                },
            }
        ]
    },
}


def faults(value, schema, path=""):
    """Returns where a value does not have the form of a schema."""
    if isinstance(schema, dict):
        fields = {name.rstrip("*"): each for name, each in schema.items()}
        missing = [f"{path}.{n[:-1]} is missing" for n in schema if n.endswith("*") and n[:-1] not in value]
        odd = [f"{path}.{name} is unknown" for name in value if name not in fields]
        inner = [f for n, v in value.items() if n in fields for f in faults(v, fields[n], f"{path}.{n}")]
        return missing + odd + inner
    if isinstance(schema, list):
        return [fault for i, each in enumerate(value) for fault in faults(each, schema[0], f"{path}[{i}]")]
    fits = isinstance(value, schema) if isinstance(schema, type) else value == schema
    return [] if fits else [f"{path} is {value!r}"]


def made(**changes):
    fields = {"image": "i", "claim": "c", "mount": "/sweeps"} | changes
    return jobset("/sweeps/lr", 3, SINCE, **fields)


def test_a_jobset_has_the_form_of_its_schema():
    assert faults(made(), SCHEMA) == []
    wrong = made()
    del wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["image"]
    wrong["spec"]["replicas"] = 2
    assert len(faults(wrong, SCHEMA)) == 2


def test_its_workers_are_the_jobs_and_see_the_folder():
    job = made()["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"]) == (3, 3)
    container = job["template"]["spec"]["containers"][0]
    assert container["command"] == ["lmjax", "sweep", "--workdir=/sweeps/lr", "--worker", f"--since={SINCE}"]
    with pytest.raises(FlagError, match="is not below /other"):
        made(mount="/other")


def test_each_tpu_has_its_name_and_starts_a_worker():
    lines = shlex.split(queued_resource("/nfs/my sweep", 2, SINCE, accelerator="a", runtime="r"))
    assert lines.count("create") == 2
    scripts = [each.partition("=")[2].partition("=")[2] for each in lines if each.startswith("--metadata=")]
    assert scripts[0].startswith("#! /bin/bash\n")
    assert shlex.split(scripts[0].splitlines()[1])[2] == "--workdir=/nfs/my sweep"
    assert {"--node-id=nfs-my-sweep-0", "--node-id=nfs-my-sweep-1"} <= set(lines)


@pytest.mark.parametrize(
    ("folder", "name"), [("/nfs/My_Sweep.2", "nfs-my-sweep-2"), ("/1/2", "sweep-1-2"), ("/ü", "sweep")]
)
def test_names_are_those_that_clusters_accept(folder, name):
    assert sweep_name(folder) == name


def test_what_is_printed_can_be_read():
    assert faults(json.loads(printed("jobset", "/nfs/lr", 2, SINCE)), SCHEMA) == []
    assert printed("queued_resource", "/nfs/lr", 2, SINCE).count("gcloud") == 2
