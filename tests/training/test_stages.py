"""Training: a miniature of every stage, exact resume, and the sequence that training and generation share. The loop
itself: test_trainer.py."""

import pytest
import torch
from safetensors.torch import save_file

import vgt
from benchmarks import convergence
from drawn import folder as drawings_folder
from miniatures import HELD_OUT, LANGUAGE, SCENES, VISION, autoencoder, captioner, generator, losses, toml, training
from vgt.config import FlowHeadConfig, GeneratorConfig, LanguageModelConfig
from vgt.evaluation import results
from vgt.families import family
from vgt.networks.autoencoder import channel_norm
from vgt.networks.flow_head import FlowHead
from vgt.networks.language_model import LanguageModel
from vgt.prompt import PromptTokenizer
from vgt.run.plan import make_plan
from vgt.training import autoencoder_command, captioner_command, generator_command
from vgt.training import generator as review
from vgt.training.base_model import load_base
from vgt.training.build import new_generator
from vgt.training.command import read_config, read_settings, read_table
from vgt.training.data import DataError, open_data, open_held_out
from vgt.training.generator import GeneratorStage, Objective, draw_times, flow_matching
from vgt.training.latents import LatentDataset
from vgt.training.optimiser import make_optimisers
from vgt.training.sequence import next_inputs, query_inputs, states
from vgt.training.settings import Settings, TrainingError
from vgt.training.text import train_tokenizer

SPECIAL_TOKENS = family("qwen2_5_vl").special_tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small VLM in the hub layout, taught to caption for a moment."""
    folder = tmp_path_factory.mktemp("captioner")
    captioner_command.run(captioner(), folder, None)
    return folder


@pytest.fixture(scope="module")
def tokenizer(base, tmp_path_factory):
    """A tokenizer after a moment of stage 1."""
    folder = tmp_path_factory.mktemp("tokenizer")
    autoencoder_command.run(autoencoder(base), folder, None)
    return folder


def test_each_stage_lowers_its_loss(base, tokenizer, tmp_path):
    generator_command.run(generator(base, tokenizer, steps=30), tmp_path, None)
    for folder, name in ((base, "caption"), (tokenizer, "l2"), (tmp_path, "flow")):
        values = losses(folder, name)
        assert sum(values[-3:]) < 0.9 * sum(values[:3]), (name, values)
    assert (tokenizer / "sheet-000012.png").is_file()
    model = vgt.load(tmp_path / generator_command.FILE)
    latent = model.generate(["a red circle"], height=56, width=56, flow=vgt.FlowSettings(steps=2))
    assert model.decode(latent).shape == (1, 3, 56, 56)


@pytest.mark.parametrize("stage", ["captioner", "autoencoder", "generator", "generator with Muon"])
def test_resume_is_exact(stage, base, tokenizer, tmp_path):
    muon = generator(base, tokenizer, steps=4, muon=True)
    muon["generator"]["flow_head"]["width"] = 128  # as small as hidden states may be for Muon
    config, run = {
        "captioner": (captioner(steps=4), captioner_command.run),
        "autoencoder": (autoencoder(base, {"adversarial_from": 1}, steps=4), autoencoder_command.run),
        "generator": (generator(base, tokenizer, steps=4), generator_command.run),
        "generator with Muon": (muon, generator_command.run),
    }[stage]
    run(config, tmp_path / "whole", None)
    run(config, tmp_path / "parts", 2)
    run(config, tmp_path / "parts", None)
    one, other = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts"))
    for part in ("stage", "average", "auxiliary"):
        for name, tensor in one.get(part, {}).items():
            assert torch.equal(tensor, other[part][name]), (part, name)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_it_goes_on_through_main_memory_and_draws_without_graphs(base, tokenizer, tmp_path, monkeypatch):
    """A device has no room for all weights a second time, nor for what graphs of a sample sheet would keep."""
    loaded, drawn = [], []
    load, draw = torch.load, review.generate
    monkeypatch.setattr(torch, "load", lambda *where, **how: (loaded.append(how), load(*where, **how))[1])
    monkeypatch.setattr(review, "generate", lambda *what, **how: (drawn.append(how), draw(*what, **how))[1])
    config = generator(base, tokenizer, steps=2, sheet_every=1) | {"held_out": HELD_OUT}
    generator_command.run(config, tmp_path, 1)
    generator_command.run(config, tmp_path, None)
    assert [how["map_location"] for how in loaded if "map_location" in how] == ["cpu"]
    assert drawn and all(how["graphs"] is False for how in drawn)


def test_muon_trains_maps_between_hidden_states_and_adamw_the_rest():
    words, inward, hidden = torch.nn.Embedding(300, 128), torch.nn.Linear(32, 128), torch.nn.Linear(128, 256)
    parameters = [*words.parameters(), *inward.parameters(), *hidden.parameters()]
    settings = Settings(1, 1, 0.01, muon=True)
    adamw, muon = make_optimisers([{"params": parameters, "scale": 0.5}], settings, {words.weight})
    assert [len(optimiser.param_groups[0]["params"]) for optimiser in (adamw, muon)] == [4, 1]
    assert muon.param_groups[0]["params"][0] is hidden.weight
    assert all(optimiser.param_groups[0]["lr"] == 0.005 for optimiser in (adamw, muon))
    (alone,) = make_optimisers([{"params": parameters, "scale": 1.0}], Settings(1, 1, 0.01), set())
    assert len(alone.param_groups[0]["params"]) == 5


def test_generators_are_scored_as_they_learn_on_a_plain_autoencoder_as_good(base, tokenizer, tmp_path, monkeypatch):
    """The whole comparison in miniature, in the folder of a recipe."""
    data = {**SCENES, "kind": "drawings", "folder": str(drawings_folder(tmp_path / "drawings"))}
    (tmp_path / "drawings-autoencoder-2.toml").write_text("\n".join(toml({**autoencoder(base), "data": data})))
    for name, folder in (("drawings-captioner", base), ("drawings-autoencoder-2", tokenizer)):
        (tmp_path / name).symlink_to(folder, target_is_directory=True)
    small = Settings(2, 4, 1e-3, sheet_every=1)
    smaller = {"CONFIGS": tmp_path, "LAYERS": 1, "PICTURES": 8, "PROMPTS": 6}
    smaller |= {"GENERATOR": small, "TOKENIZER": {**vars(small), "device": "cpu"}}
    for name, value in {**smaller, "WITHIN": -90.0}.items():
        monkeypatch.setattr(convergence, name, value)
    with pytest.raises(ValueError, match=r"rebuilds with .* dB after 2 steps, not "):
        convergence.compare(tmp_path, 2)
    monkeypatch.setattr(convergence, "WITHIN", 90.0)
    convergence.compare(tmp_path, 2)
    read = results.read(sorted((tmp_path / "convergence").glob("*[0-9]")))
    curves = results.lines(read, "training_step")
    labels = [f"{kind}, seed {seed}" for kind in ("VGT-AE", "plain autoencoder") for seed in (5, 6)]
    assert {label: [step for step, _ in curve] for label, curve in curves.items()} == {
        label: [1, 2] for label in labels
    }


def test_rounds_go_on_from_a_file(base, tokenizer, tmp_path):
    """A tokenizer's decoder and a generator can be trained further from what the stage before wrote."""
    first = autoencoder_command.read_checkpoint(tokenizer / autoencoder_command.FILE).tensors
    config = autoencoder(base, {"decoder_only": True, "distillation": 0.0, "adversarial": 0.0}, steps=1)
    autoencoder_command.run({**config, "init": str(tokenizer / autoencoder_command.FILE)}, tmp_path / "ae", None)
    second = autoencoder_command.read_checkpoint(tmp_path / "ae" / autoencoder_command.FILE).tensors
    changed = {name.split(".")[1] for name, tensor in first.items() if not torch.equal(tensor, second[name])}
    assert changed == {"pixel_decoder"}
    drawings = {**SCENES, "kind": "drawings", "folder": str(drawings_folder(tmp_path / "drawings")), "count": 32}
    generator_command.run({**generator(base, tokenizer, steps=1), "data": drawings}, tmp_path / "ar", None)
    made = autoencoder_command.read_checkpoint(tmp_path / "ar" / generator_command.FILE)
    assert "Microsoft" in made.attribution and "red" in made.vocabulary and len(made.latent_rgb) == 33
    config = generator(base, tmp_path / "ae", steps=1, learning_rate=1e-9)
    generator_command.run({**config, "init": str(tmp_path / "ar" / generator_command.FILE)}, tmp_path / "further", None)
    one, other = (vgt.load(tmp_path / name / generator_command.FILE).generator for name in ("ar", "further"))
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor, other.state_dict()[name], atol=1e-3), name


def test_openings_past_the_picture_are_refused(base, tokenizer, tmp_path):
    config = generator(base, tokenizer, steps=2)
    with pytest.raises(TrainingError, match=r"objective.openings is \[0, 4\]; of 4 tokens 0 to 3 can be drawn"):
        generator_command.run({**config, "objective": {"openings": [0, 4]}}, tmp_path, None)
    with pytest.raises(TrainingError, match=r"objective\.places is 0; it must be a whole number from 1 on"):
        generator_command.run({**config, "objective": {"openings": [0], "places": 0}}, tmp_path, None)


def test_a_language_model_may_learn_by_guesses_before_its_flow_head(base, tokenizer, tmp_path):
    config = generator(base, tokenizer, steps=20)
    config["objective"] = {"draws": 0, "guess": 1.0, "openings": [0]}
    generator_command.run(config, tmp_path, None)
    guesses = losses(tmp_path, "guess")
    assert sum(guesses[-4:]) < 0.9 * sum(guesses[:4]) and not losses(tmp_path, "flow")
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    untouched = new_generator(vgt.load(tmp_path / generator_command.FILE).generator.config, "qwen2_5_vl", 0).flow_head
    learnt = {name: last["stage"][f"flow_head.{name}"] for name in untouched.state_dict()}
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in untouched.state_dict().items())
    for table in ({"draws": 0}, {"draws": 0, "guess": 1.0, "repa": 0.1}):
        with pytest.raises(TrainingError, match=r"objective\.draws is 0, so there is no flow head to learn"):
            generator_command.run({**config, "objective": table}, tmp_path / "other", None)


def test_first_layers_may_stay_as_they_are(base, tokenizer, tmp_path):
    generator_command.run(generator(base, tokenizer, steps=1), tmp_path / "one", None)
    config = generator(base, tokenizer, steps=3)
    config["objective"] = {"frozen": 1, "draws": 0, "guess": 1.0}
    config["init"] = str(tmp_path / "one" / generator_command.FILE)
    generator_command.run(config, tmp_path / "two", None)
    one, two = (vgt.load(tmp_path / name / generator_command.FILE).generator for name in ("one", "two"))
    differs = {name for name, tensor in one.state_dict().items() if not torch.equal(tensor, two.state_dict()[name])}
    assert any(name.startswith("language_model.layers.1.") for name in differs)
    assert not any(
        name.startswith(("language_model.layers.0.", "language_model.embed", "position_q")) for name in differs
    )


def test_all_layers_may_stay_as_they_are(base, tokenizer, tmp_path):
    generator_command.run(generator(base, tokenizer, steps=1), tmp_path / "one", None)
    config = generator(base, tokenizer, steps=3)
    config["init"] = str(tmp_path / "one" / generator_command.FILE)
    config["objective"] = {"frozen": 2}
    generator_command.run(config, tmp_path / "two", None)
    one, two = (vgt.load(tmp_path / name / generator_command.FILE).generator for name in ("one", "two"))
    differs = {name for name, tensor in one.state_dict().items() if not torch.equal(tensor, two.state_dict()[name])}
    assert {name.split(".")[0] for name in differs} == {"flow_head", "image_out_projector"}
    config["objective"] = {"frozen": 3}
    with pytest.raises(TrainingError, match=r"objective\.frozen is 3; the language model has 2 layers"):
        generator_command.run(config, tmp_path / "three", None)


def test_an_opening_may_learn_some_of_the_places(base):
    """What it says of them is what it says of them among all."""
    found = load_base(base / "base")
    generator = new_generator(GeneratorConfig(found.language, FlowHeadConfig(16, 1), 4), found.family, 3)
    tokenizer = PromptTokenizer(found.tokenizer_json, found.pad_token)
    latents, prompts = channel_norm(torch.randn(2, 32, 2, 3), 1), ["a red circle", "two blue stars"]
    conditions, asked = [], []
    for places in (None, 2):
        stage = GeneratorStage(generator, tokenizer, Objective(openings=(1,), places=places), [], Settings(1, 2, 1.0))
        stage.begin_step(1)
        with torch.no_grad():
            condition, _, order, _ = stage.ask(latents, prompts, torch.Generator().manual_seed(0), 0.0)
        conditions.append(condition.unflatten(0, (2, -1)))
        asked.append(order)
    assert asked[0].shape == (2, 5) and torch.equal(asked[1], asked[0][:, :2])
    every, some = conditions
    assert torch.allclose(some, every[:, :2], atol=1e-5)


def test_features_may_be_wider_than_the_language_model():
    """As InternVL3 2B's language model beside the tokenizer of InternVL3 1B."""
    language = LanguageModelConfig(vocabulary=10, **LANGUAGE)
    generator = new_generator(GeneratorConfig(language, FlowHeadConfig(32, 1), 2), "internvl3", 0)
    tokenizer_json = train_tokenizer(["a red circle"] * 9, 300, SPECIAL_TOKENS).encode()
    latents = [(torch.zeros(32, 2, 2), "a red circle", torch.zeros(4, 48))]
    tokenizer = PromptTokenizer(tokenizer_json, SPECIAL_TOKENS[0])
    stage = GeneratorStage(generator, tokenizer, Objective(repa=1.0), latents, Settings(1, 1, 1.0))
    assert stage.auxiliary["repa"][-1].out_features == 48


def test_the_training_sequence_is_that_of_training_consistent_decoding(base):
    """The hidden states at the queries are those that generation sees when it draws the same latents."""
    found = load_base(base / "base")
    config = GeneratorConfig(LanguageModelConfig(**found.language.__dict__), FlowHeadConfig(16, 1), 4)
    generator = new_generator(config, found.family, 3)
    generator.language_model.load_state_dict(found.language_state)
    tokenizer = PromptTokenizer(found.tokenizer_json, found.pad_token)
    text = tokenizer(["a red circle", "two blue stars on a mint background"], None)
    assert text.lengths[0] != text.lengths[1]
    latents = channel_norm(torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0)), -1)
    order = [4, 0, 5, 2, 1, 3]

    from vgt.run.flow import FlowSampler, FlowSettings
    from vgt.run.generation import run_tensors
    from vgt.run.token_step import TokenStep, step_inputs

    plan = make_plan(
        order, 1, lengths=text.lengths, start=len(tokenizer.image_start), known=[],
        decoding="training-consistent", grouping="uniform", cfg=[1.0] * 6,
    )  # fmt: skip
    seen = []
    hook = generator.image_out_projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        noise = torch.zeros(2, 6, 1, 32)
        run, words = run_tensors(generator, plan, text.ids, tokenizer.image_start, (2, 3), noise, "cpu")
        sampler = FlowSampler(generator.flow_head, FlowSettings(steps=1), "cpu", torch.float32)
        token_step = TokenStep(generator, plan, sampler, run)
        token_step.allocate(plan.slots)
        inputs = step_inputs(plan, generator.language_model, torch.float32, "cpu")
        for step, own in zip(plan.steps, inputs):
            run.latents.copy_(latents)
            if step.slot:
                token_step(own, step.slot)
            else:
                token_step.first(own, words)
        hook.remove()
        orders = torch.tensor(order).expand(2, -1)

        def whole(orders):
            return states(generator, query_inputs(generator, text, tokenizer.image_start, latents, orders, (2, 3)))

        def following(drawn):
            asked = next_inputs(generator, text, tokenizer.image_start, latents, orders, drawn, (2, 3))
            return states(generator, asked)

        said = whole(orders)
        nexts = {drawn: following(drawn) for drawn in (0, 2)}
        # The same, asked one place at a time: each of those left comes next in an order of its own.
        singly = {
            drawn: [
                whole(torch.tensor(own).expand(2, -1))
                for own in (order[:drawn] + order[at:] + order[drawn:at] for at in range(drawn, 6))
            ]
            for drawn in nexts
        }
    assert torch.allclose(torch.cat(seen, dim=1), said, atol=1e-5)
    for drawn, answers in nexts.items():
        assert torch.allclose(answers, torch.stack([own[:, drawn] for own in singly[drawn]], dim=1), atol=1e-5)
        assert not torch.allclose(answers[:, 0], answers[:, 1], atol=1e-2)


def test_flow_matching_moves_from_noise_to_data():
    x, noise = torch.randn(5, 32), torch.randn(5, 32)
    start, velocity = flow_matching(x, noise, torch.zeros(5))
    assert torch.equal(start, noise)
    assert torch.allclose(start + velocity, x, atol=1e-6)
    plain = draw_times(20000, 1.0, torch.Generator().manual_seed(0))
    shifted = draw_times(20000, 3.0, torch.Generator().manual_seed(0))
    assert abs(float(plain.median()) - 0.5) < 0.02
    assert float(shifted.median()) < 0.3


def test_the_flow_heads_gradient_is_that_of_its_output():
    torch.manual_seed(0)
    head = FlowHead(FlowHeadConfig(8, 2), 6, dtype=torch.float64)
    x, condition = (torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (32, 6))
    assert torch.autograd.gradcheck(lambda x, condition: head(x, torch.full((3,), 0.4), condition), (x, condition))


def test_the_base_model_is_read_by_transformers(base):
    """Our small VLM is a Qwen2.5-VL: `transformers` reads it and gives the same words the same probabilities."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from vgt.networks.vision_parts import normalise, token_patches
    from vgt.training.captioning import Captioner, _embed, multimodal_rotary

    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(base / "base", dtype=torch.float32).eval()
    found = load_base(base / "base")
    template = family(found.family).caption
    tower = found.vision.build(found.language.width)
    tower.load_state_dict(found.vision_state)
    model = LanguageModel(found.language)
    model.load_state_dict(found.language_state)
    pixels = torch.rand(1, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    captioner = Captioner(found.tokenizer_json, template, found.pad_token)
    prefix, positions = captioner.prefix((2, 3))
    with torch.no_grad():
        embeds = _embed(model, prefix[None], tower(pixels), captioner.image)
        hidden = model(embeds, multimodal_rotary(model, template, positions), None)
        said = hidden @ model.embed_tokens.weight.T
        answer = theirs(
            input_ids=prefix[None],
            attention_mask=torch.ones_like(prefix)[None],
            mm_token_type_ids=(prefix == captioner.image).long()[None],
            pixel_values=token_patches(normalise(pixels, tower.MEAN, tower.STD), 14, 2).flatten(0, 2),
            image_grid_thw=torch.tensor([[1, 4, 6]]),
        ).logits
    assert torch.allclose(answer, said, atol=2e-4), (answer - said).abs().max()


def test_webdataset_shards_train_a_tokenizer_and_a_generator(base, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    scenes = open_data(SCENES, captions=True)
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"shard-{shard}.tar")) as tar:
            for index in range(8 * shard, 8 * shard + 8):
                pixels, caption = scenes[index]
                tar.write({"__key__": f"{index}", "png": pixels.movedim(0, -1).numpy(), "txt": caption})
    shards = {"kind": "webdataset", "size": 56, "path": str(tmp_path / "shard-{0..1}.tar")}
    config = {**autoencoder(base, steps=3, save_every=1), "data": shards}
    autoencoder_command.run(config, tmp_path / "whole", None)
    autoencoder_command.run(config, tmp_path / "parts", 2)
    autoencoder_command.run(config, tmp_path / "parts", None)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    config = {**generator(base, tmp_path / "whole", steps=2), "data": shards}
    with pytest.raises(TrainingError, match="lacks count"):
        generator_command.run(config, tmp_path / "generator", None)
    generator_command.run({**config, "data": {**shards, "count": 16}}, tmp_path / "generator", None)
    captions = LatentDataset(tmp_path / "generator" / "latents", 16).captions
    assert sorted(captions) == sorted(scenes[index][1] for index in range(16))
    with pytest.raises(DataError, match=r"held_out.kind is 'webdataset'"):
        open_held_out(shards, captions=True)


def test_unusable_configurations_are_named(base, tmp_path):
    with pytest.raises(TrainingError, match="cannot be read as a configuration"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(TrainingError, match="unknown 'epochs'"):
        read_settings({"training": {"steps": 1, "batch_size": 1, "learning_rate": 1.0, "epochs": 3}})
    with pytest.raises(TrainingError, match="is no base model"):
        load_base(tmp_path)
    with pytest.raises(TrainingError, match=r"objective is 3; it must be a table"):
        read_table({"objective": 3}, "objective", Objective)
    for table, message in (
        ({"steps": 0}, r"training.steps is 0; it must be a whole number from 1 on"),
        ({"save_every": 1.5}, r"training.save_every is 1.5"),
        ({"dtype": "bf16"}, r"training.dtype is 'bf16'; it must be float32 or bfloat16"),
    ):
        with pytest.raises(TrainingError, match=message):
            read_settings({"training": training(**table)})
    config = captioner()
    for name in ("held_out", "tokenizer", "vision"):
        with pytest.raises(TrainingError, match=rf"The configuration lacks {name}"):
            captioner_command.run({key: value for key, value in config.items() if key != name}, tmp_path, None)
    with pytest.raises(TrainingError, match=r"The \[vision\] table holds the unknown 'layers'"):
        captioner_command.run({**config, "vision": {**VISION, "layers": 3}}, tmp_path, None)
    with pytest.raises(TrainingError, match=r"The \[language\] table is incomplete \(.*'depth'"):
        captioner_command.run({**config, "language": {"width": 32}}, tmp_path, None)
    with pytest.raises(TrainingError, match=r"lacks the .safetensors of a DC-AE decoder"):
        autoencoder_command.run({**autoencoder(base), "dc_ae": str(tmp_path)}, tmp_path, None)
    with pytest.raises(TrainingError, match=r"holds a DC-AE decoder of another size"):
        save_file({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "dc_ae.safetensors")
        autoencoder_command.run({**autoencoder(base), "dc_ae": str(tmp_path)}, tmp_path, None)
    with pytest.raises(TrainingError, match="holds a model of type 'qwen2_5_vl'; internvl3 is needed"):
        load_base(base / "base", "internvl3")
