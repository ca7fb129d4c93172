"""Settings: order of sources, and one clear line for whatever is wrong."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.errors import UserError
from stetholm.settings import Settings, SettingsError, load_settings
from stetholm.settings.load import setting_keys


def config(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def settings_file(folder: Path, body: str) -> Path:
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return config(folder, f"cluster_name: x\nmetadata:\n  stetholm:\n{indented}")


def complaint(*args, **kwargs) -> str:
    kwargs.setdefault("environ", {})
    with pytest.raises(SettingsError) as caught:
        load_settings(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_without_file_or_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}) == Settings()


def test_cluster_yaml_of_the_current_directory_is_read(tmp_path, monkeypatch):
    settings_file(tmp_path, "run:\n  name: here")
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).run.name == "here"


def test_later_sources_win(tmp_path):
    path = settings_file(tmp_path, "train:\n  max_steps: 1\n  epochs: 2\n  batch_size: 4")
    environ = {"STETHOLM_TRAIN__MAX_STEPS": "10", "STETHOLM_TRAIN__EPOCHS": "20"}
    train = load_settings(path, ["train.max_steps=100"], environ).train
    assert (train.max_steps, train.epochs, train.batch_size) == (100, 20.0, 4)


def test_the_last_of_two_overrides_wins():
    assert load_settings(None, ["run.seed=1", "run.seed=2"], {}).run.seed == 2


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("prefer.temperatures=[0.7,1.0]", lambda s: s.prefer.temperatures, [0.7, 1.0]),
        ("model.init_from=s3://b/c", lambda s: s.model.init_from, "s3://b/c"),
        ("model.init_from=null", lambda s: s.model.init_from, None),
        ("run.name=2024", lambda s: s.run.name, "2024"),
        ("run.name=on", lambda s: s.run.name, "on"),
        ("train.learning_rate=5e-5", lambda s: s.train.learning_rate, 5e-5),
        ("train.zero_stage=3", lambda s: s.train.zero_stage, 3),
        ("corpus.synthetic.patients=9", lambda s: s.corpus.synthetic.patients, 9),
        ("evaluate.gate.overall=0.5", lambda s: s.evaluate.gate, {"overall": 0.5}),
        ("evaluate.gate={a.b: 0.5}", lambda s: s.evaluate.gate, {"a.b": 0.5}),
        ("evaluate.judge=gpt-4o", lambda s: s.evaluate.judge.model, "gpt-4o"),
        ("evaluate.judge={model: m, concurrency: 2}", lambda s: s.evaluate.judge.concurrency, 2),
        ("evaluate.judge.base_url=http://x/v1", lambda s: s.evaluate.judge.base_url, "http://x/v1"),
        ("serve.gate=required", lambda s: s.serve.gate, "required"),
        ("storage.access_key=0123", lambda s: s.storage.access_key, "0123"),
        ("train.use_gpu=true", lambda s: s.train.use_gpu, True),
    ],
)
def test_values_of_set_are_yaml(override, read, value):
    assert read(load_settings(None, [override], {})) == value


def test_shared_train_keys_reach_the_stage_from_any_source(tmp_path):
    path = settings_file(tmp_path, "train:\n  batch_size: 3\nsft:\n  epochs: 7")
    stage = load_settings(path, ["train.epochs=9"], {"STETHOLM_TRAIN__MAX_STEPS": "5"}).stage("sft")
    assert (stage.batch_size, stage.max_steps, stage.epochs) == (3, 5, 7.0)


def test_a_plain_value_for_a_section_is_its_main_key_in_any_order_and_place(tmp_path):
    path = settings_file(tmp_path, "evaluate:\n  judge: big")
    for overrides in (["evaluate.judge.base_url=http://x/v1", "evaluate.judge=small"],
                      ["evaluate.judge=small", "evaluate.judge.base_url=http://x/v1"]):  # fmt: skip
        judge = load_settings(path, overrides, {}).evaluate.judge
        assert (judge.model, judge.base_url) == ("small", "http://x/v1")
    assert load_settings(path, environ={}).evaluate.judge.model == "big"
    assert "evaluate.judge.model" in complaint(None, ["evaluate.judge=[a]"])
    assert "evaluate.tasks" in complaint(None, ["evaluate.tasks=[Repport]"])


def test_a_section_with_only_comments_sets_nothing(tmp_path):
    assert load_settings(settings_file(tmp_path, "train:\n  # max_steps: 5\nrun: {}"), environ={}) == Settings()


def test_files_without_our_settings_are_fine(tmp_path):
    for text in ("", "cluster_name: x", "metadata:", "metadata: {stetholm: }", "metadata: {other: 1}"):
        assert load_settings(config(tmp_path, text), environ={}) == Settings()


def test_unknown_key_in_the_file(tmp_path):
    path = settings_file(tmp_path, "train:\n  max_stepz: 5")
    assert complaint(path) == (
        f"{path}: metadata.stetholm: unknown setting 'train.max_stepz'; did you mean 'train.max_steps'?"
    )


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("trian.max_steps", "train.max_steps"),
        ("max_steps", "max_steps"),
        ("storage.url", "storage.uri"),
        ("corpus.synthetic.patient", "corpus.synthetic.patients"),
        ("run.name.first", "run.name"),
        ("dpo.lambda_cond", "dpo.lambda_conditional"),
    ],
)
def test_unknown_key_in_set_names_the_nearest(wrong, nearest):
    message = complaint(None, [f"{wrong}=5"])
    assert message.startswith(f"--set: unknown setting '{wrong}'; did you mean '")
    assert message.removesuffix("'?").endswith(nearest)


def test_a_whole_section_in_set():
    assert load_settings(None, ["train={workers: 3}", "train.epochs=2"], {}).train.workers == 3
    assert "'train.worker'; did you mean 'train.workers'" in complaint(None, ["train={worker: 3}"])


def test_unknown_key_in_the_environment():
    message = complaint(environ={"STETHOLM_TRAIN__MAX_STEPZ": "5", "STETHOLM_HOME": "/x"})
    assert "STETHOLM_TRAIN__MAX_STEPZ" in message and "'train.max_steps'" in message


def test_ill_typed_values_name_key_and_source(tmp_path):
    path = settings_file(tmp_path, "train:\n  max_steps: many")
    assert f"{path}: metadata.stetholm: train.max_steps: " in complaint(path)
    assert "environment STETHOLM_RUN__SEED: run.seed: " in complaint(environ={"STETHOLM_RUN__SEED": "-1"})
    message = complaint(path, ["train.workers=two"])
    assert "(and 1 more)" in message
    assert complaint(None, ["train.workers=two"]).endswith("(got 'two')")


@pytest.mark.parametrize("override", ["train=5", "train={workers: x}", "run.name={a: 1}", "prefer.temperatures=x"])
def test_values_of_the_wrong_shape(override):
    assert override.partition("=")[0] in complaint(None, [override])


def test_a_secret_is_never_in_the_message_or_the_settings_text():
    assert "hunter2" not in complaint(None, ["storage.secret_key=[hunter2", "run.seed=x"])
    settings = load_settings(None, ["storage.secret_key=hunter2"], {})
    assert "hunter2" not in repr(settings) and settings.storage.secret_key.get_secret_value() == "hunter2"


def test_files_that_cannot_be_read(tmp_path):
    assert "no such settings file" in complaint(tmp_path / "none.yaml")
    assert "cannot be read" in complaint(tmp_path)
    assert "line 2" in complaint(config(tmp_path, "a: 1\nb: ]\n"))
    assert "line 3" in complaint(config(tmp_path, "a: 1\nb: 2\na: 3\n"))


@pytest.mark.parametrize(
    ("text", "place"),
    [("[1, 2]", "the file"), ("metadata: 5", "metadata "), ("metadata: {stetholm: [1]}", "metadata.stetholm")],
)
def test_files_of_the_wrong_shape(tmp_path, text, place):
    assert f"{place.strip()} must be a mapping" in complaint(config(tmp_path, text))


@pytest.mark.parametrize(
    "text", ["a: 2024-99-99", "? [a]\n: b", "a: &a {b: *a}", "[" * 5000, "a: !!python/name:os.system"]
)
def test_odd_yaml_is_one_clear_line_too(tmp_path, text):
    assert "cluster.yaml" in complaint(config(tmp_path, "metadata:\n  stetholm:\n    " + text.replace("\n", "\n    ")))


@pytest.mark.parametrize("override", ["train.max_steps", "=5", ""])
def test_set_without_key_or_value(override):
    assert "key=value" in complaint(None, [override])


AWS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}


def test_aws_environment_fills_an_s3_storage():
    environ = {**AWS, "AWS_ENDPOINT_URL": "http://b", "AWS_ENDPOINT_URL_S3": "http://a"}
    storage = load_settings(None, ["storage.uri=s3://bucket", "storage.region=us-west-2"], environ).storage
    assert (storage.access_key, storage.secret_key.get_secret_value()) == ("key", "secret")
    assert (storage.endpoint_url, storage.region) == ("http://a", "us-west-2")


def test_aws_environment_does_not_touch_the_embedded_storage():
    assert load_settings(None, [], AWS) == Settings()


@given(st.sampled_from(setting_keys()))
def test_every_key_is_known_from_set_and_environment(key):
    """A value of no use to any setting but text is refused for its type, never as unknown."""
    name = "STETHOLM_" + key.upper().replace(".", "__")
    for arguments in ((None, [f"{key}=!x [}}"], {}), (None, [], {name: "!x [}"})):
        try:
            load_settings(*arguments)
        except SettingsError as error:
            assert "unknown" not in str(error) and key in str(error)


@given(st.text(max_size=60))
def test_any_text_as_override_is_settings_or_one_line(text):
    try:
        load_settings(None, [text], {})
    except SettingsError as error:
        assert "\n" not in str(error)


@given(st.text(max_size=200))
def test_any_text_as_file_is_settings_or_a_clear_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_settings(path, [], {})
    except SettingsError as error:
        assert "any.yaml" in str(error)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dpo.loss_type=sigmod"], r"dpo\.loss_type\.0: input should be 'sigmoid_norm', 'sigmoid'.* \(got 'sigmod'\)"),
        (["dpo.loss_type=[]"], r"dpo\.loss_type: .* at least 1"),
        (["dpo.loss_type=[sigmoid, sft]", "dpo.loss_weights=[1.0]"], "1 loss_weights for 2 loss_type"),
        (["dpo.loss_type=exo_pair"], r"exo_pair needs a label_smoothing above 0"),
        (["dpo.label_smoothing=0.5"], r"dpo\.label_smoothing: input should be less than 0\.5"),
        (["train.offload=cpu"], r"train\.offload: input should be 'none', 'optimizer' or 'all'"),
    ],
)
def test_losses_and_offload_are_checked_where_they_are_set(overrides, said):
    assert re.search(said, complaint(None, overrides))


def test_losses_as_trl_takes_them():
    assert load_settings(None, ["dpo.loss_type=ipo"], {}).dpo.loss_type == ("ipo",)
    both = load_settings(None, ["dpo.loss_type=[exo_pair, sft]", "dpo.label_smoothing=0.001"], {}).dpo
    assert both.loss_type == ("exo_pair", "sft")
    assert Settings().dpo.loss_type == ("sigmoid_norm",)


@pytest.mark.parametrize(
    ("stage", "overrides", "said"),
    [
        ("sft", ["train.offload=all"], r"sft: train\.offload=all needs train\.zero_stage of 3 or more, not 2"),
        ("sft", ["sft.offload=optimizer", "train.zero_stage=0"], r"needs train\.zero_stage of 1 or more, not 0"),
        ("sft", ["train.tokens_per_batch=255"], r"tokens_per_batch=255 does not hold one sample .*max_tokens=256"),
        ("dpo", ["train.tokens_per_batch=767"], r"dpo: .*\(768 tokens with its rows\)"),
    ],
)
def test_settings_of_a_stage_that_contradict_each_other(stage, overrides, said):
    settings = load_settings(None, overrides, {})
    with pytest.raises(UserError, match=said):
        settings.stage(stage)
    others = {"sft", "dpo", "align"} - {stage}
    if overrides == ["train.tokens_per_batch=767"]:
        assert all(settings.stage(other).tokens_per_batch == 767 for other in others)


def test_offload_with_its_stage_of_zero():
    settings = load_settings(None, ["train.zero_stage=3", "sft.offload=all"], {})
    assert settings.stage("sft").offload == "all" and settings.stage("dpo").offload == "none"
