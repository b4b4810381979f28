"""How many kernels torch.compile makes for a CUDA device that is not there: its own scheduler decides, nothing runs."""

from contextlib import ExitStack, suppress
from types import SimpleNamespace
from unittest import mock

import torch
from torch._inductor.ir import MultiOutput
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensorMode

H100 = SimpleNamespace(
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block_optin=232448,
    warp_size=32,
    name="no device",
)
"""What the scheduler asks of a device."""


class Scheduled(Exception):
    """Ends the compiling, once it is clear what becomes a kernel."""


def kernels(make, fake: FakeTensorMode, options=None) -> list[str]:
    """What launches in the code for a function, a name each.

    make: called under `fake`; returns the function and its tensors, on "cuda".
    """
    from torch._inductor import config
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.post_grad import post_grad_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch.fx.experimental.proxy_tensor import make_fx

    scheduled = []

    def note(nodes):
        scheduled.extend(_name(node) for node in nodes if _launches(node))
        raise Scheduled

    interface = "torch._dynamo.device_interface.CudaInterface"
    stand_ins = {
        "torch.cuda._lazy_init": lambda: None,
        "torch._subclasses.fake_tensor.init_gpu_context": lambda *_: None,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_capability": lambda *_: (9, 0),
        "torch.cuda.get_device_properties": lambda *_: H100,
        f"{interface}.get_device_properties": staticmethod(lambda *_: H100),
        f"{interface}.get_compute_capability": staticmethod(lambda *_: 90),
        "torch._inductor.scheduler.has_triton": lambda: True,
        "torch._inductor.utils.get_gpu_dram_gbps": lambda: 3350,
        "torch._inductor.scheduler.get_gpu_dram_gbps": lambda: 3350,
    }
    with mock.patch("torch.cuda._lazy_init", lambda: None), fake:
        function, tensors = make()
    with ExitStack() as within:
        for name, stand_in in stand_ins.items():
            within.enter_context(mock.patch(name, stand_in))
        within.enter_context(config.patch(_post_fusion_custom_pass=note, **(options or {})))
        within.enter_context(V.set_fake_mode(fake))
        with fake, torch.no_grad():
            graph = make_fx(torch.func.functionalize(function), decomposition_table=select_decomp_table())(*tensors)
        post_grad_passes(graph, True)
        lowering = GraphLowering(graph, example_inputs=list(tensors), is_inference=True)
        with DebugContext(), V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]), suppress(Scheduled):
            lowering.run(*tensors)
            lowering.codegen()
    return scheduled


def _launches(node) -> bool:
    return not isinstance(node, NopKernelSchedulerNode) and not isinstance(node.node, MultiOutput)


def _name(node) -> str:
    """A library's kernel by its name, one that the compiler makes by what goes into it."""
    if isinstance(node, ExternKernelSchedulerNode):
        return node.node.python_kernel_name or type(node.node).__name__
    return " ".join(sorted({str(origin.target) for part in node.get_nodes() for origin in part.node.get_origins()}))
