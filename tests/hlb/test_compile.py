"""The compiled step: one graph of forward pass and loss, one of the update, none made anew later."""

import shutil

import pytest
import torch
import torch.nn.functional as F

import hlb
from hlb import synthetic
from hlb.execution import compiled, resolve, shortage_explained
from hlb.train import Trainer
from kernels import pool_head

# With two sizes of images, a stem that freezes, a short last batch, hard images and an average: every variant
# of a step.
SETTINGS = {"base_depth": 4, "train_examples": 110, "batch_size": 40, "eval_batch_size": 40, "epochs": 3.0,
            "whiten_images": 50, "whiten_bias_epochs": 0.5, "sizes": "20,32", "drop_last": False,
            "averaging": "tail", "averaging_epochs": 1.0, "averaging_every": 2, "averaging_decay": 0.8,
            "hard_fraction": 0.4, "hard_from": 1, "dtype": "float32"}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(110, 60))


@pytest.fixture
def graphs(monkeypatch) -> list:
    """Graphs that torch.compile made, run as they are: what is tested is how many there are."""
    made, compile = [], torch.compile

    def backend(graph, inputs, options):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda work, **options: compile(work, backend=backend, **options))
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


KERNELS = "reference," + ",".join(
    f"{op}=triton" for op in ("pool_head", "scatter_losses", "cross_entropy", "update_running_stats", "sgd")
)


def test_every_variant_of_a_step_is_two_graphs_and_none_is_compiled_in_a_run(data, graphs):
    recipe, execution = resolve(hlb.recipe("smoke", SETTINGS), hlb.Execution(compile="on", kernels=KERNELS))
    ours = Trainer(recipe, execution, data)
    forwards = {variant[:3] for variant in ours.plan}
    updates = {variant.average for variant in ours.plan}
    evaluations = 2  # of 60 test images, 40 and 20
    before = len(graphs)
    assert before == len(forwards) + len(updates) + evaluations
    with torch.compiler.set_stance("fail_on_recompile"):
        run = ours.run(0)
    assert run.status == "ok" and len(graphs) == before


def test_graph_break_in_a_step_is_an_error(data, graphs, monkeypatch):
    recipe, execution = resolve(hlb.recipe("smoke", SETTINGS), hlb.Execution(compile="on"))
    layout = hlb.networks.Network.layout
    monkeypatch.setattr(
        hlb.networks.Network, "layout", lambda self, x: (torch._dynamo.graph_break(), layout(self, x))[1]
    )
    with pytest.raises(torch._dynamo.exc.Unsupported):
        Trainer(recipe, execution, data)


@pytest.mark.parametrize("without", ["a compiler", "a folder"])
def test_nothing_to_compile_with_is_one_line_that_says_what_and_how_to_do_without(
    without, monkeypatch, tmp_path
):
    from torch._inductor import config

    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compilers = {"a compiler": (None, "/no/g++"), "a folder": config.cpp.cxx}[without]
    if without == "a compiler":
        why = "no C compiler is found: install gcc and g++"
    else:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file/cache"))
        why = f"{tmp_path}/file/cache: Not a directory, and compiled code is kept there"
    torch._dynamo.reset()
    recipe, explained = hlb.recipe("smoke"), pytest.raises(hlb.UserError)
    with explained as caught, shortage_explained(recipe), config.patch({"cpp.cxx": compilers}):
        compiled(lambda x: x.sin() + 1)(torch.ones(3))
    said = str(caught.value)
    assert said.startswith(f"nothing can be compiled here: {why}") and "\n" not in said
    assert said.endswith("; or take --compile off, on a GPU with --kernels reference")


@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch compiles for a CPU with a C++ compiler")
def test_compiled_pool_of_values_that_are_computed_again_has_a_gradient():
    """Fused with what precedes it, the backward pass sees other roundings than the maximum was found in."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 16, 3, 3, generator=generator), torch.randn(10, 16, generator=generator)
    found = []
    for how in (lambda work: work, torch.compile):
        leaf = x.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
        logits = how(lambda x: pool_head.reference(F.gelu(x * 1.37 + 0.1), weight.bfloat16(), 1.0))(leaf)
        found.append(torch.autograd.grad(logits.square().sum(), leaf)[0].float().sum((2, 3)))
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05 * found[0].abs().max().item())
