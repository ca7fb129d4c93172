"""Renderings: what a change in cluster.yaml does to each, and whether those who read them accept them."""

import shlex
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from stetholm.cluster import KINDS, read_cluster, render
from stetholm.cluster.__main__ import main
from stetholm.errors import UserError
from stetholm.settings import load_settings
from tests.conftest import ROOT

KUBERAY = ("raycluster", "rayjob", "rayservice")
GCP = ROOT / "platform/stetholm/presets/cluster-gcp.yaml"
ON_PREM = ROOT / "platform/stetholm/presets/cluster-on-prem.yaml"
REDIS = ROOT / "platform/stetholm/presets/cluster-redis.yaml"
OVERS = {
    "aws": [],
    "gcp": [GCP],
    "on-prem": [ON_PREM],
    "redis": [REDIS],
    "gcp, redis": [GCP, REDIS],
    "on-prem, redis": [ON_PREM, REDIS],
    "redis, on-prem": [REDIS, ON_PREM],
}


def cluster_spec(manifest):
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(manifest):
    return {group["groupName"]: group for group in cluster_spec(manifest)["workerGroupSpecs"]}


def pods(manifest):
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


# --- those who read them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KUBERAY)
def test_kubernetes_own_schema_reads_the_pods(rendered, kind):
    templates = pods(yaml.safe_load(rendered(kind)))  # KubeRay's own fields: test_kuberay.py
    assert len(templates) > 1
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": "a", **pod["metadata"]}
        kubernetes_validate.validate(pod, "1.31", strict=True)


def test_rays_own_autoscaler_reads_the_raycluster(rendered):
    from ray.autoscaler._private.kuberay import autoscaling_config

    manifest = yaml.safe_load(rendered("raycluster"))
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(manifest)
    file = read_cluster(ROOT / "cluster.yaml", environ={}).cluster
    for name, kind in file.workers.items():
        found = derived["available_node_types"][name]
        assert (found["min_workers"], found["max_workers"]) == (kind.min_workers, file.most(name))
        assert found["resources"]["CPU"] == kind.cpus
        assert found["resources"].get("GPU", 0) == kind.gpus
        assert found["labels"] == kind.labels
        assert found.get("idle_timeout_s") == kind.idle_timeout_s
    assert derived["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    assert derived["idle_timeout_minutes"] == file.idle_timeout_minutes


def test_serves_own_schema_reads_the_deploy_config(rendered):
    from ray.serve.schema import ServeDeploySchema

    for text in (rendered("serve"), yaml.safe_load(rendered("rayservice"))["spec"]["serveConfigV2"]):
        parsed = ServeDeploySchema.model_validate(yaml.safe_load(text))
        (application,) = parsed.applications
        assert application.import_path == "serve.app:build_app"
        assert load_settings(ROOT / "cluster.yaml", application.args["set"], {}).storage.uri == "s3://bucket/prefix"


def test_the_serve_config_names_what_there_is():
    import importlib

    module, _, name = "serve.app:build_app".partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("over", OVERS.values(), ids=OVERS)
def test_ray_up_accepts_the_launcher_file_of_each_provider(over):
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = render(read_cluster(ROOT / "cluster.yaml", over=over, environ={}), "ray")
    prepared = prepare_config(yaml.safe_load(text))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts(prepared))
    assert any("stetholm-platform" in line for line in prepared["setup_commands"])
    head, worker = starts(prepared)
    # Where the provider makes the node types, the start line alone says that the head runs no task.
    assert "--num-cpus=0 --num-gpus=0" in head and "--num-cpus" not in worker
    assert ("RAY_REDIS_ADDRESS=" in head) == (REDIS in over)


def starts(prepared):
    lines = [*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"]]
    return [line for line in lines if "ray start" in line]


def test_the_overrides_leave_nothing_of_amazons():
    for file in (GCP, ON_PREM):
        text = render(read_cluster(ROOT / "cluster.yaml", over=[file], environ={}), "ray")
        assert not [word for word in ("InstanceType", "ImageId", "us-east-1", "aws") if word in text]


def test_compose_names_known_services_and_keeps_to_this_machine(rendered):
    tree = yaml.safe_load(rendered("compose"))
    assert set(tree["services"]) == {"head", "data", "trainer", "server"}
    assert all(port.startswith("127.0.0.1:") for port in tree["services"]["head"]["ports"])
    for service in tree["services"].values():
        words = shlex.split(service["command"])
        assert words[:2] == ["ray", "start"] and "--block" in words
        assert service["environment"]["RAY_AUTH_MODE"] == "token"


# --- a change shows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KUBERAY, "compose"])
def test_the_image_shows(rendered, kind):
    text = rendered(kind, lambda tree: tree["metadata"]["kubernetes"].update(image="mine:7"))
    assert "mine:7" in text and "stetholm-platform" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_platform_setting_shows(rendered, kind):
    def change(tree):
        tree["metadata"]["stetholm"]["serve"]["target_ongoing_requests"] = 17

    def shows(text):
        return "target_ongoing_requests" in text.lower() and "17" in text

    assert shows(rendered(kind, change)) and not shows(rendered(kind))


def test_numbers_of_workers_show(rendered):
    def change(tree):
        tree["available_node_types"]["trainer"].update(min_workers=2, max_workers=3)

    for kind in ("raycluster", "rayjob"):
        group = groups(yaml.safe_load(rendered(kind, change)))["trainer"]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 3)
    assert yaml.safe_load(rendered("compose", change))["services"]["trainer"]["deploy"]["replicas"] == 2
    assert yaml.safe_load(rendered("ray", change))["available_node_types"]["trainer"]["max_workers"] == 3


def test_the_clusters_limit_bounds_each_type(rendered):
    manifest = yaml.safe_load(rendered("raycluster", lambda tree: tree.update(max_workers=1)))
    assert {group["maxReplicas"] for group in groups(manifest).values()} == {1}


def test_resources_show(rendered):
    def change(tree):
        tree["available_node_types"]["trainer"]["resources"] = {"CPU": 96, "GPU": 8, "fast_disk": 1}
        tree["metadata"]["kubernetes"]["pods"]["trainer"] = {"cpu": 90, "memory": "900Gi"}
        tree["metadata"]["kubernetes"]["gpu_resource"] = "amd.com/gpu"

    group = groups(yaml.safe_load(rendered("raycluster", change)))["trainer"]
    params, (container,) = group["rayStartParams"], group["template"]["spec"]["containers"]
    assert (params["num-cpus"], params["num-gpus"]) == ("96", "8")
    assert "fast_disk" in params["resources"]
    assert container["resources"]["limits"] == {"cpu": "90", "memory": "900Gi", "amd.com/gpu": "8"}
    assert group["template"]["spec"]["tolerations"][0]["key"] == "amd.com/gpu"
    assert "--num-gpus=8" in yaml.safe_load(rendered("compose", change))["services"]["trainer"]["command"]


def test_a_job_and_the_endpoint_have_only_the_nodes_they_need(rendered):
    assert set(groups(yaml.safe_load(rendered("rayjob")))) == {"data", "trainer"}
    assert set(groups(yaml.safe_load(rendered("rayservice")))) == {"server"}


def test_a_pod_is_given_longer_than_its_last_checkpoint_takes(rendered):
    def change(tree):
        tree["metadata"]["stetholm"]["train"] = {"grace_seconds": 200}

    job = yaml.safe_load(rendered("rayjob", change))
    assert all(template["spec"]["terminationGracePeriodSeconds"] > 200 for template in pods(job))
    for template in pods(job):  # and `ray job stop` waits as long
        (container,) = template["spec"]["containers"]
        env = {each["name"]: each["value"] for each in container["env"]}
        assert int(env["RAY_JOB_STOP_WAIT_TIME_S"]) > 200


def test_the_jobs_environment_gives_back_the_settings(rendered):
    def change(tree):
        tree["metadata"]["stetholm"] |= {
            "run": {"name": "2024", "seed": 7},
            "prefer": {"temperatures": [0.5, 1.0]},
            "evaluate": {"gate": {"overall.bertscore": 0.6}},
            "train": {"trackers": [], "max_steps": 12, "label_selector": {"stetholm.role": "trainer"}},
        }

    manifest = yaml.safe_load(rendered("rayjob", change, job="sft"))
    environ = yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"]
    read = load_settings(ROOT / "platform/stetholm/presets/cluster-gcp.yaml", environ=environ)
    assert (read.run.name, read.run.seed, read.train.max_steps, read.train.trackers) == ("2024", 7, 12, ())
    assert read.train.label_selector == {"stetholm.role": "trainer"}
    assert read.prefer.temperatures == [0.5, 1.0]
    assert read.evaluate.gate == {"overall.bertscore": 0.6}
    # The operator's submitter gives it to a shell of its own: operators of the shell would act there.
    assert manifest["spec"]["entrypoint"] == "python /opt/stetholm/jobs/sft.py"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ray"])
def test_keys_of_the_storage_stay_out(rendered, kind):
    def change(tree):
        tree["metadata"]["stetholm"]["storage"] |= {"access_key": "AKIDSECRET", "secret_key": "verysecret"}

    text = rendered(kind, change)
    assert "AKIDSECRET" not in text and "verysecret" not in text


def test_pods_get_the_keys_from_their_secret(rendered):
    for template in pods(yaml.safe_load(rendered("raycluster"))):
        (container,) = template["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "stetholm-storage", "optional": True}}]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head_node_type": "boss"}, "head_node_type"),
        ({"cluster_name": "No Good"}, "cluster_name"),
        ({"max_workers": -1}, "max_workers"),
        ({"metadata": {"kubernetes": {"imagee": "x"}}}, "imagee"),
        ({"metadata": {"kubernetes": {"pods": {"ghost": {"cpu": 1}}}}}, "ghost"),
        ({"metadata": {"kubernetes": {"pods": {"data": {"memory": "lots"}}}}}, "memory"),
    ],
)
def test_a_bad_file_is_one_line_that_names_what_is_wrong(rendered, change, said):
    with pytest.raises(UserError, match=said) as error:
        rendered("raycluster", lambda tree: tree.update(change))
    assert "\n" not in str(error.value)


def test_a_job_is_a_script_and_nothing_else(rendered):
    with pytest.raises(UserError, match="--job"):
        rendered("rayjob", job="sft; rm -r x")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such cluster file"):
        read_cluster(tmp_path / "none.yaml")


def test_machines_of_ones_own_have_no_kubernetes_rendering():
    with pytest.raises(UserError, match="available_node_types"):
        render(read_cluster(ROOT / "cluster.yaml", over=[ON_PREM], environ={}), "raycluster")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_file_to_stdout_and_notes_to_stderr(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["render", "--kind", "rayservice", "--set", "serve.allow_anonymous=true"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["kind"] == "RayService"
    assert "embedded" in err and "api_keys_file" in err


@pytest.mark.parametrize("chosen", [["rayservice"], ["serve", "--set", "serve.host=0.0.0.0"]])
def test_an_endpoint_that_others_reach_is_not_rendered_without_keys(capsys, monkeypatch, chosen):
    monkeypatch.chdir(ROOT)
    assert main(["render", "--kind", *chosen]) == 2
    out, err = capsys.readouterr()
    assert not out and "could ask the endpoint" in err.splitlines()[-1]
    assert main(["render", "--kind", *chosen, "--set", "serve.api_keys_file=/etc/stetholm/keys"]) == 0
    assert main(["render", "--kind", "serve"]) == 0  # on 127.0.0.1


def test_the_command_ends_with_2_and_one_line(capsys, tmp_path):
    assert main(["render", "--kind", "serve", "--cluster", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_needs_no_ray():
    code = "import sys; sys.argv=['x','render','--help']\nimport stetholm.cluster.__main__ as m\n"
    code += "try: m.main()\nexcept SystemExit: assert 'ray' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
