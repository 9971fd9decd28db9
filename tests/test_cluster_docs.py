"""The files in docs/cluster are what Ray, Kubernetes and Slurm take, and their commands are those of `inst`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from inst.cli import app

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "cluster"
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
COMMANDS: Any = typer.main.get_command(app)

FIELDS = {
    "RayJob": {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    | {"submitterPodTemplate", "rayClusterSpec"},
    "rayClusterSpec": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
"""The fields of KubeRay's API ray.io/v1 that the manifest uses, from the API's reference."""


def kuberay() -> list[dict[str, Any]]:
    """The objects of the manifest."""
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text()))


def ray_job() -> dict[str, Any]:
    """The specification of the job."""
    [job] = [each for each in kuberay() if each["kind"] == "RayJob"]
    return dict(job["spec"])


def parse(command: str) -> dict[str, Any]:
    """The arguments of an `inst` command, as its own parser reads them."""
    words = shlex.split(command)
    found: Any = COMMANDS
    names = words[1:3]
    for name in names:
        found = found.commands[name]
    return dict(found.make_context(" ".join(names), words[3:]).params)


def test_ray_accepts_the_file_for_a_cloud() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    yaml = pytest.importorskip("yaml")
    given = yaml.safe_load((FOLDER / "aws.yaml").read_text())
    config = util.prepare_config(given)
    util.validate_config(config)
    kinds = config["available_node_types"]
    assert kinds["gpu"]["min_workers"] == kinds["gpu"]["max_workers"] == config["max_workers"]
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]  # the head must not be lost


def test_the_launcher_prepares_the_cluster_on_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a model of AWS: keys, network, the role and the resources of each kind of machine."""
    moto = pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    util = pytest.importorskip("ray.autoscaler._private.util")
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    yaml = pytest.importorskip("yaml")
    for name, value in {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)  # the launcher writes a key into the home folder
    config = util.prepare_config(yaml.safe_load((FOLDER / "aws.yaml").read_text()))
    with moto.mock_aws():
        boto3.client("iam", region_name="us-west-2").create_instance_profile(InstanceProfileName="inst-ray")
        config = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
    workers = config["available_node_types"]["gpu"]
    [command] = quoted_commands()
    assert parse(command)["concurrency"] == workers["resources"]["GPU"] * workers["max_workers"]
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["IamInstanceProfile"] == {"Name": "inst-ray"}
        assert kind["node_config"]["ImageId"]
        assert kind["node_config"]["SubnetIds"]


def quoted_commands() -> list[str]:
    """The `inst` commands of the page that another command is given."""
    return re.findall(r"-- +(inst [^\"]*)\"", PAGE.replace("\\\n", " "))


def test_ray_refuses_what_it_does_not_know() -> None:
    """The validator of the test above looks at the names."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    schema = pytest.importorskip("jsonschema")
    yaml = pytest.importorskip("yaml")
    given = yaml.safe_load((FOLDER / "aws.yaml").read_text())
    with pytest.raises(schema.ValidationError):
        util.validate_config(util.prepare_config(given | {"max_worker": 4}))


def pods() -> list[dict[str, Any]]:
    """The templates of the pods: that of the submitter, of the head and of the workers."""
    cluster = ray_job()["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [ray_job()["submitterPodTemplate"], *(group["template"] for group in groups)]


def test_kubernetes_knows_every_field_of_the_pods() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    version = validator.latest_version()
    for template in pods():
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        validator.validate(whole, version, strict=True)
        wrong = {**whole, "template": {"spec": {**template["spec"], "serviceAcountName": "inst"}}}
        with pytest.raises(validator.ValidationError):
            validator.validate(wrong, version, strict=True)
    for other in kuberay():
        if other["kind"] != "RayJob":
            validator.validate(other, version, strict=True)


def test_kuberay_knows_the_fields_of_the_job() -> None:
    job = ray_job()
    cluster = job["rayClusterSpec"]
    assert set(job) <= FIELDS["RayJob"]
    assert set(cluster) <= FIELDS["rayClusterSpec"]
    assert set(cluster["headGroupSpec"]) == FIELDS["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == FIELDS["workerGroupSpecs"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert isinstance(cluster["rayVersion"], str)


def test_the_job_uses_every_gpu_of_its_workers() -> None:
    settings = parse(ray_job()["entrypoint"])
    [group] = ray_job()["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert settings["concurrency"] == group["replicas"] * gpus
    assert settings["address"] == "auto"


def test_all_pods_have_the_image_and_the_ray_of_the_dockerfile() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    [version] = re.findall(r"ray\[default,data\]==([\d.]+)", dockerfile)
    assert ray_job()["rayClusterSpec"]["rayVersion"] == version
    assert f"ray[default]=={version}" in PAGE
    images = {each["image"] for template in pods() for each in template["spec"]["containers"]}
    assert len(images) == 1
    assert f"-t {images.pop()} ." in dockerfile


def test_the_dockerfile_copies_what_docker_is_given() -> None:
    lines = re.findall(r"^COPY (.*) \S+$", (FOLDER / "Dockerfile").read_text(), flags=re.M)
    given = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source for line in lines for source in line.split()} <= given


def slurm_commands() -> list[str]:
    """The `inst` commands of the script, with continued lines joined."""
    lines = (FOLDER / "slurm.sh").read_text().replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("inst ")]


def test_the_script_for_slurm_is_good_bash() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    program = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("ShellCheck is not installed")
    done = subprocess.run([program, FOLDER / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_command_of_the_script_for_slurm_is_one_of_inst() -> None:
    [command] = slurm_commands()
    settings = parse(re.sub(r"\$\(\(.*?\)\)", "32", command).removesuffix("&").strip())
    assert settings["concurrency"] == 32
    assert settings["address"] == "auto"


def test_the_command_that_the_page_gives_to_the_head_is_one_of_inst() -> None:
    """Those on lines of their own are tested with all pages."""
    [command] = quoted_commands()
    assert parse(command)["num_gpus"] == 1
