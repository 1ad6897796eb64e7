"""The Flax network's weights in the PyTorch one, and whether both then compute the
same; for `run.py`.
"""

import math

import jax
import numpy as np
import torch

from benchmarks.beside_torch.method import Predictor, Trainer, sampler_rows
from biedsnet_jax.config import build_data, build_model


def random_variables(cfg) -> dict:
    """Weights of the network's shapes, with no scale, bias or running statistic left at
    0 or 1.
    """
    rng, model = np.random.default_rng(0), build_model.build(cfg)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), build_data.image_shape(cfg))
    )

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = math.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 10
        return rng.normal(0.0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def to_state_dict(tree: dict) -> dict[str, torch.Tensor]:
    """Flax parameters or statistics under PyTorch's names and layouts: HWIO to OIHW,
    dense to its transpose.
    """
    leaves = {
        "kernel": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
    }
    state = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        *module, leaf = (entry.key for entry in path)
        value = np.asarray(value)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[".".join([*module, leaves.get(leaf, leaf)])] = torch.tensor(value)
    return state


def load_variables(network: torch.nn.Module, variables: dict) -> None:
    """Give a PyTorch network a Flax one's weights; a name or shape without counterpart
    is an error.
    """
    # PyTorch also counts batches, which Flax does not.
    state = {
        name: value
        for name, value in network.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    for collection in variables.values():
        state |= to_state_dict(collection)
    network.load_state_dict(state)


def noise_batch(cfg, images: int) -> dict[str, np.ndarray]:
    """Images of noise and random masks."""
    rng, (height, width, channels) = (
        np.random.default_rng(1),
        build_data.image_shape(cfg),
    )
    mask = rng.random((images, height, width, cfg.data.classes)) > 0.9
    return {
        "image": rng.random((images, height, width, channels), np.float32),
        "mask": mask.astype(np.float32),
    }


def to_torch(x, device: torch.device) -> torch.Tensor:
    """A "b h w c" array as a "b c h w" tensor in channels_last memory."""
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)).to(
        device, memory_format=torch.channels_last
    )


def differences(
    cfg, variables: dict, network: torch.nn.Module, device: torch.device
) -> dict[str, float]:
    """Largest difference of logits, loss and prediction as a share of the largest
    value, of the gradient by norm.

    In float32, on two images. Random samplers draw other noise in PyTorch, so their
    prediction is left out.
    """
    cfg = cfg.copy_and_resolve_references()
    cfg.dtype = "float32"
    model, batch = build_model.build(cfg), noise_batch(cfg, 2)
    predictor, trainer = Predictor(network, cfg, device), Trainer(network, cfg, device)
    found = {
        "logits": _logits(model, predictor, variables, batch),
        **_loss(model, trainer, variables, batch),
    }
    plan = sampler_rows(cfg)
    if not any(sigma for *_, sigma in plan):
        found["prediction"] = _prediction(
            model, predictor, variables, batch["image"], plan
        )
    return found


def _logits(model, predictor, variables, batch):
    last = model.schedule.timesteps - 1
    x_t, t = (
        np.random.default_rng(2).normal(size=batch["mask"].shape).astype(np.float32),
        np.array([last // 99, last]),
    )
    logits, out = jax.jit(
        lambda v, *inputs: model.network.apply(v, *inputs, train=False)
    )(variables, x_t, batch["image"], t)
    device = predictor.device
    with torch.inference_mode():
        heads = predictor.network(
            to_torch(x_t, device),
            to_torch(batch["image"], device),
            torch.tensor(t).to(device),
        )
    return max(
        _difference(*pair)
        for pair in zip(heads, [logits, *out["supervision"]], strict=True)
    )


def _loss(model, trainer, variables, batch):
    key = jax.random.key(1)

    @jax.jit
    def value_and_gradient(variables):
        statistics = {"batch_stats": variables["batch_stats"]}
        return jax.value_and_grad(
            lambda p: model.loss({"params": p, **statistics}, batch, key, train=True)[0]
        )(variables["params"])

    value, gradient = value_and_gradient(variables)
    # as `mask_diffusion.Diffusion.loss` draws
    key_t, key_noise, _ = jax.random.split(key, 3)
    t = np.array(
        jax.random.randint(key_t, (len(batch["mask"]),), 0, model.schedule.timesteps),
        np.int64,
    )
    noise = jax.random.normal(key_noise, batch["mask"].shape)
    image, mask, noise = (
        to_torch(x, trainer.device) for x in (batch["image"], batch["mask"], noise)
    )
    loss = trainer.loss(image, mask, torch.tensor(t).to(trainer.device), noise)
    loss.backward()
    ours = to_state_dict(gradient)
    theirs = {name: p.grad.cpu() for name, p in trainer.network.named_parameters()}
    off = sum(
        float((theirs[name] - ours[name]).square().sum())
        for name in ours.keys() | theirs.keys()
    )
    norm = sum(float(value.square().sum()) for value in ours.values())
    return {
        "loss": abs(loss.item() / float(value) - 1.0),
        "gradient": math.sqrt(off / norm),
    }


def _prediction(model, predictor, variables, image, plan, samples=2):
    keys = jax.random.split(jax.random.key(2), len(image))
    ours = jax.jit(
        lambda variables: model.predict(variables, image, keys, ensemble=samples).mean(
            0
        )
    )(variables)

    # as `segmenter` draws x_T
    def noise(number):
        mine = jax.vmap(
            lambda key: jax.random.split(jax.random.fold_in(key, number))[0]
        )(keys)
        return jax.vmap(lambda key: jax.random.normal(key, ours.shape[1:]))(mine)

    x_T = [to_torch(noise(number), predictor.device) for number in range(samples)]
    return _difference(
        predictor.predict(to_torch(image, predictor.device), x_T, plan), ours
    )


def _difference(theirs: torch.Tensor, ours: jax.Array) -> float:
    ours = np.asarray(ours).transpose(0, 3, 1, 2)
    return float(np.abs(theirs.cpu().numpy() - ours).max() / np.abs(ours).max())
