"""Runs VGT the plain way, as its published script does: what the benchmarks compare with.

transformers' own Qwen2 with its growing cache, a Python loop over tokens, the flow head evaluated as written at every
step. Takes its weights from one of our generators.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, Qwen2Config, Qwen2Model

from vgt.networks.autoencoder import channel_norm
from vgt.run.order import draw_order
from vgt.run.plan import group_sizes


def _mlp(mlp, x):
    """The block's MLP without what our layers do to be faster."""
    return F.linear(F.silu(F.linear(x, mlp[0].weight, mlp[0].bias)), mlp[2].weight, mlp[2].bias)


class Head(nn.Module):
    """Runs the flow head layer by layer: every block makes its own modulation at every step."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        width = head.width
        weights = head.modulation.weight.data.split(width)
        biases = head.modulation.bias.data.split(width)
        self.modulations = nn.ModuleList()
        for first in range(0, len(weights), 3):
            linear = nn.Linear(width, 3 * width, device="meta")
            linear.weight = nn.Parameter(torch.cat(weights[first : first + 3]), requires_grad=False)
            linear.bias = nn.Parameter(torch.cat(biases[first : first + 3]), requires_grad=False)
            self.modulations.append(linear)

    def forward(self, x, t, condition):
        head = self.head
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(128, device=x.device) / 128)
        time = head.time_embed(torch.cat((angles.cos(), angles.sin()), dim=-1).to(condition.dtype))
        y = time + head.cond_embed(condition)
        x = head.input_proj(x)
        for block, modulation in zip(head.blocks, self.modulations):
            shift, scale, gate = modulation(F.silu(y)).chunk(3, dim=-1)
            x = x + gate * _mlp(block.mlp, block.in_ln(x) * (1 + scale) + shift)
        shift, scale = self.modulations[-1](F.silu(y)).chunk(2, dim=-1)
        return head.output_proj(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)

    def sample(self, condition, noise, cfg, steps, last=0.04):
        """Draw tokens: condition [2N, D], noise [N, steps, 32] → [N, 32]."""
        times = torch.linspace(0, 1 - last, steps)
        x = noise[:, 0]
        for index, t in enumerate(times):
            rows = torch.cat((x, x)).to(condition.dtype)
            v = self(rows, t.expand(len(rows)).to(condition.device), condition).float()
            v_condition, v_free = v.chunk(2)
            v = v_free + cfg * (v_condition - v_free)
            if index == steps - 1:
                return x + v * last
            dt = times[index + 1] - t
            x = x + ((1 + t) * v - x) * dt + torch.sqrt(2 * (1 - t) * dt) * noise[:, index + 1]


class Baseline:
    """Runs VGT-AR's published loop, with guidance, around transformers' language model."""

    def __init__(self, generator, tokenizer):
        self.generator, self.tokenizer = generator, tokenizer
        self.language_model = language_model(generator)
        self.head = Head(generator.flow_head)

    @torch.no_grad()
    def generate(self, prompts, height, width, seed, cfg, tokens_per_step, steps, noise):
        """Prompts → latent [B, 32, h, w], as Model.generate with the published settings."""
        generator, batch = self.generator, len(prompts)
        device = generator.image_in_projector.weight.device
        text = self.tokenizer(prompts, [None] * batch)
        h, w = height // generator.token_pixels, width // generator.token_pixels
        tokens = h * w
        positions_of, queries = generator.position_queries(h, w, device, generator.dtype)
        order, groups = draw_order(1, tokens, "random", seed), []
        for size in group_sizes(tokens, tokens_per_step):
            groups.append(order[:size])
            order = order[size:]

        start = torch.tensor(self.tokenizer.image_start).expand(2 * batch, -1)
        embeds = generator.language_model.embed_tokens(torch.cat((text.ids, start), 1).to(device))
        padded = text.ids.shape[1]
        mask = torch.arange(padded) < torch.tensor(text.lengths)[:, None]
        mask = torch.cat((mask, torch.ones(2 * batch, start.shape[1] + len(groups[0]), dtype=torch.bool)), 1).to(device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        embeds = torch.cat((embeds, queries[groups[0]].expand(2 * batch, -1, -1)), 1)
        cache = DynamicCache()
        latents = torch.zeros(batch, tokens, 32, device=device)
        for index, group in enumerate(groups):
            hidden = self.language_model(
                inputs_embeds=embeds,
                attention_mask=mask if index == 0 else None,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -len(group) :]
            scale = 1 + (cfg - 1) * (len(groups) - index) / len(groups) if index else cfg
            condition = generator.image_out_projector(hidden).flatten(0, 1)
            drawn = self.head.sample(condition, noise[:, group].flatten(0, 1).to(device), scale, steps)
            latents[:, group] = channel_norm(drawn, -1).view(batch, len(group), 32)
            if index + 1 == len(groups):
                break
            fed = generator.image_in_projector(latents[:, group].to(generator.dtype)) + positions_of[group]
            fed = fed.repeat(2, 1, 1)
            if tokens_per_step > 1:
                repeated = queries[group].expand(2 * batch, -1, -1)
                fed = torch.stack((repeated, fed), dim=2).flatten(1, 2)
            embeds = torch.cat((fed, queries[groups[index + 1]].expand(2 * batch, -1, -1)), 1)
            count = torch.arange(embeds.shape[1], device=device)
            if generator.counts_padding:
                positions = (padded + (index + 1) * len(count) + count).expand(2 * batch, -1)
            else:
                positions = positions[:, -1:] + 1 + count
        return latents.transpose(1, 2).unflatten(2, (h, w))


def language_model(generator) -> Qwen2Model:
    """Build transformers' Qwen2 with our language model's weights, joined matrices cut as transformers wants them."""
    ours, config = generator.language_model, generator.config.language
    qwen = Qwen2Config(
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        vocab_size=config.vocabulary,
        rms_norm_eps=config.eps,
        max_position_embeddings=config.max_positions,
        rope_theta=config.rope_theta,
    )
    with torch.device("meta"):
        theirs = Qwen2Model(qwen)
    state = {}
    for name, tensor in ours.state_dict().items():
        if "qkv_proj" in name:
            widths = [count * config.head_width for count in (config.heads, config.kv_heads, config.kv_heads)]
            for letter, part in zip("qkv", tensor.split(widths)):
                state[name.replace("qkv_proj", f"{letter}_proj")] = part
        elif "gate_up_proj" in name:
            for which, part in zip(("gate", "up"), tensor.chunk(2)):
                state[name.replace("gate_up_proj", f"{which}_proj")] = part
        else:
            state[name] = tensor
    theirs.load_state_dict(state, assign=True)
    theirs.rotary_emb = type(theirs.rotary_emb)(qwen).to(ours.norm.weight.device)
    return theirs.eval()
