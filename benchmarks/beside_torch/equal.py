"""Loads the Flax network's weights into PyTorch's, and compares what both compute."""

import math

import jax
import numpy as np
import torch

from benchmarks.beside_torch.method import Predictor, Setting, Trainer, sampler_rows
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.segmenters import segmenter


def random_variables(cfg) -> dict:
    """Random weights of the network's shapes.

    No scale, bias or running statistic is left at 0 or 1, where a mistake would hide.
    """
    rng = np.random.default_rng(0)
    model = build_model.build(cfg)
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
    """Flax parameters or statistics under PyTorch's names and in its layouts.

    Convolution kernels go from HWIO to OIHW, dense ones to their transpose.
    """
    leaves = {
        "kernel": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
    }
    state = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        # Modules nest alike in both, so that a path is a name with dots.
        *module, leaf = (entry.key for entry in path)
        value = np.asarray(value)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[".".join([*module, leaves.get(leaf, leaf)])] = torch.tensor(value)
    return state


def load_variables(network: torch.nn.Module, variables: dict) -> None:
    """Gives a PyTorch network a Flax network's weights.

    Raises RuntimeError for a name or shape without a counterpart.
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
    """A batch of noise images and random masks."""
    rng = np.random.default_rng(1)
    height, width, channels = build_data.image_shape(cfg)
    mask = rng.random((images, height, width, cfg.data.classes)) > 0.9
    image = rng.random((images, height, width, channels), np.float32)
    return {"image": image, "mask": mask.astype(np.float32)}


def differences(
    cfg,
    variables: dict,
    network: torch.nn.Module,
    device: torch.device,
    setting: Setting,
) -> dict[str, float]:
    """Differences between the two networks in float32, on two images.

    Those of logits, loss and prediction are the largest one as a share of the largest
    value; that of the gradient is by norm. Random samplers draw other noise in PyTorch,
    so their prediction is left out.
    """
    cfg = cfg.copy_and_resolve_references()
    cfg.dtype = "float32"
    model = build_model.build(cfg)
    batch = noise_batch(cfg, 2)
    predictor = Predictor(network, cfg, device, setting)
    trainer = Trainer(network, cfg, device, setting)
    logits = _logits(model, predictor, variables, batch)
    found = {"logits": logits, **_loss(model, trainer, variables, batch)}
    plan = sampler_rows(cfg)
    # A sampler without sigma draws nothing after x_T.
    if not any(sigma for *_, sigma in plan):
        image = batch["image"]
        found["prediction"] = _prediction(model, predictor, variables, image, plan)
    return found


def _logits(model, predictor, variables, batch):
    rng = np.random.default_rng(2)
    x_t = rng.normal(size=batch["mask"].shape).astype(np.float32)
    # One early time, where x_t is nearly the mask, and the last one, where it is noise.
    last = model.schedule.timesteps - 1
    t = np.array([last // 99, last])

    @jax.jit
    def apply(variables):
        return model.network.apply(variables, x_t, batch["image"], t, train=False)

    logits, out = apply(variables)
    device = predictor.device
    noisy, image = (
        predictor.setting.to_torch(x, device) for x in (x_t, batch["image"])
    )
    features = predictor.encode(image)
    heads = predictor.denoise(features, noisy, image, torch.tensor(t).to(device))
    ours = [logits, *out["supervision"]]
    return max(_difference(*pair) for pair in zip(heads, ours, strict=True))


def _loss(model, trainer, variables, batch):
    key = jax.random.key(1)

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(params):
        return model.loss({**variables, "params": params}, batch, key, train=True)[0]

    value, gradient = value_and_gradient(variables["params"])
    # These are the draws of `mask_diffusion.Diffusion.loss`.
    key_t, key_noise, _ = jax.random.split(key, 3)
    mask = batch["mask"]
    t = jax.random.randint(key_t, (len(mask),), 0, model.schedule.timesteps)
    noise = jax.random.normal(key_noise, mask.shape)
    image, mask, noise = (
        trainer.setting.to_torch(x, trainer.device)
        for x in (batch["image"], mask, noise)
    )
    t = torch.tensor(np.array(t, np.int64)).to(trainer.device)
    loss = trainer.loss(image, mask, t, noise)
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


def _prediction(model, predictor, variables, image, plan):
    samples = 2
    keys = jax.random.split(jax.random.key(2), len(image))

    @jax.jit
    def predict(variables):
        return model.predict(variables, image, keys, ensemble=samples).mean(0)

    ours = predict(variables)
    # Both programs start from our draws of x_T.
    drawn = [
        segmenter.draw(model.network, image, keys, number)[0]
        for number in range(samples)
    ]
    seen, *noise = (
        predictor.setting.to_torch(x, predictor.device) for x in (image, *drawn)
    )
    theirs = predictor.predict(seen, noise, plan)
    return _difference(theirs, ours)


def _difference(theirs: torch.Tensor, ours: jax.Array) -> float:
    ours = np.asarray(ours).transpose(0, 3, 1, 2)
    return float(np.abs(theirs.cpu().numpy() - ours).max() / np.abs(ours).max())
