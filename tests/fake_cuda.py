"""A CUDA device that is not there: tensors on it have shape, dtype and device, but no numbers.

Whatever would mix devices, clash in dtypes or wait for the device to read a number fails, as it would (or would be
slow) on a real one. Tensors on the CPU stay real, so plans, noise and prompts are what they always are.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VIEWS = {
    *("view", "_unsafe_view", "_reshape_alias", "expand", "slice", "select", "split", "split_with_sizes", "unsqueeze"),
    *("squeeze", "transpose", "t", "permute", "unbind", "detach", "alias", "as_strided", "unfold", "lift_fresh"),
}
NO_LAUNCH = VIEWS | {
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "device", "unflatten", "index_put"),
}
"""What only looks at memory, or takes it."""

ONE_DTYPE = {"mm", "addmm", "bmm", "baddbmm", "convolution", "native_layer_norm", "_fused_rms_norm"} | {
    *("index_copy_", "index_add_", "cat", "addcmul", "lerp"),
}
"""What fails on a device, but not without one, when its inputs are of several dtypes."""


class FakeCuda(TorchDispatchMode):
    """Within it, device "cuda" can be asked for. `launches` counts operations that would launch a kernel or a copy.

    `peak` is the most bytes that tensors took at one time, from where `track` was called.
    """

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.launches = Counter()
        self.peak, self._live = 0, None

    def track(self):
        self.peak, self._live = 0, {}

    def _count(self, made):
        for tensor in tree_leaves(made):
            if isinstance(tensor, FakeTensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._live:
                    self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))

    def __enter__(self):
        if not torch.cuda.is_available():
            torch.cuda._lazy_init = lambda: None  # which PyTorch calls as soon as the device is named
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(…, device="cuda") makes a real copy
        self._attention = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self._attend
        return super().__enter__()

    def __exit__(self, *what):
        F.scaled_dot_product_attention = self._attention
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*what)

    def _attend(self, q, k, v, attn_mask=None, is_causal=False, **options):
        """One kernel; without a device PyTorch would choose the one that is made of many."""
        if not isinstance(q, FakeTensor):
            return self._attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, **options)
        given = [q, k, v] + ([] if attn_mask is None else [attn_mask])
        assert {tensor.device for tensor in given} == {q.device}
        assert k.dtype == v.dtype == q.dtype
        assert attn_mask is None or attn_mask.dtype in (torch.bool, q.dtype)
        if attn_mask is not None:
            torch.broadcast_shapes(attn_mask.shape, (*q.shape[:-1], k.shape[-2]))
        self.launches["attention"] += 1
        return q.new_empty(*q.shape[:-1], v.shape[-1])

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        leaves = tree_leaves((arguments, options))
        ours = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        if not ours and not any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
            return function(*arguments, **options)
        name = function._schema.name.partition("::")[2]
        if name not in NO_LAUNCH:
            self.launches[name] += 1
        if name in ONE_DTYPE:
            dtypes = {leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()}
            assert len(dtypes) <= 1, f"{name} of several dtypes: {dtypes}"
        with self.fake:
            made = function(*arguments, **options)
        if self._live is not None and name not in VIEWS:
            self._count(made)
        return made
