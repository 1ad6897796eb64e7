"""Both programs of the comparison, each as calls that return when the work is done."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from benchmarks.beside_torch.method import Predictor, Setting, Trainer, sampler_rows
from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import build_model
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.runtime import devices
from biedsnet_jax.training import train_step

Call = Callable[[], object]


class Ours:
    """Our program."""

    def __init__(self, cfg, variables: dict):
        self.cfg = cfg
        self.variables = jax.device_put(variables)
        self.model = build_model.build(cfg)

    def training_step(self, batch: dict) -> Call:
        """A call that trains on `batch`."""
        optimizer, _ = make_optimizer(self.cfg.train)
        mesh = devices.make_mesh(jax.devices()[:1])
        update = train_step.Update(self.model, optimizer, ema_decay=self.cfg.train.ema)
        step = train_step.make_train_step(update, mesh)
        # The step donates its state, so it gets a copy of the variables.
        state = train_state.create(jax.tree.map(jnp.copy, self.variables), optimizer)
        state = jax.device_put(state, devices.replicated(mesh))
        # The batch is on the device before the clock starts, as PyTorch's is.
        batch = devices.put_batch(batch, mesh)
        key = jax.random.key(0)

        def call():
            nonlocal state
            state, metrics = jax.block_until_ready(step(state, batch, key))
            return metrics

        return call

    def denoising_step(self, image: np.ndarray) -> Call:
        """A call that denoises an image whose features are there."""
        network = self.model.network
        image = jax.device_put(image)

        @jax.jit
        def encode(variables, image):
            return network.apply(variables, image, train=False, method=network.encode)

        @jax.jit
        def step(variables, *inputs):
            method = network.denoise
            return network.apply(variables, *inputs, train=False, method=method)[0]

        # The encoder runs once an image, so it is not part of the step.
        features = encode(self.variables, image)
        shape = (*image.shape[:3], self.cfg.data.classes)
        x_t = jax.random.normal(jax.random.key(0), shape)
        t = jnp.full(1, self.cfg.diffusion.timesteps // 2)
        return lambda: jax.block_until_ready(
            step(self.variables, features, x_t, image, t)
        )

    def prediction(self, image: np.ndarray, samples: int) -> Call:
        """A call that predicts the mean of `samples` samples."""
        keys = jax.random.split(jax.random.key(0), 1)
        image = jax.device_put(image)

        @jax.jit
        def predict(variables, image, keys):
            return self.model.predict(variables, image, keys, ensemble=samples).mean(0)

        return lambda: jax.block_until_ready(predict(self.variables, image, keys))


class PyTorch:
    """PyTorch's program at one setting, as the same calls."""

    def __init__(self, cfg, network: nn.Module, device: torch.device, setting: Setting):
        self.cfg = cfg
        self.network = network
        self.device = device
        self.setting = setting
        self.predictor = Predictor(network, cfg, device, setting)

    def training_step(self, batch: dict) -> Call:
        """A call that trains on `batch`."""
        trainer = Trainer(self.network, self.cfg, self.device, self.setting)
        image = self.setting.to_torch(batch["image"], self.device)
        mask = self.setting.to_torch(batch["mask"], self.device)
        return self._done(lambda: trainer.update(image, mask))

    def denoising_step(self, image: np.ndarray) -> Call:
        """A call that denoises an image whose features are there."""
        image = self.setting.to_torch(image, self.device)
        features = self.predictor.encode(image)
        x_t = self._noise(image)
        t = torch.full((1,), self.cfg.diffusion.timesteps // 2, device=self.device)
        return self._done(lambda: self.predictor.denoise(features, x_t, image, t))

    def prediction(self, image: np.ndarray, samples: int) -> Call:
        """A call that predicts the mean of `samples` samples."""
        image = self.setting.to_torch(image, self.device)
        plan = sampler_rows(self.cfg)

        def predict():
            noise = [self._noise(image) for _ in range(samples)]
            return self.predictor.predict(image, noise, plan)

        return self._done(predict)

    def lineage(
        self, image: np.ndarray, samples: int, steps: int | None = None
    ) -> Call:
        """A call of DDPM's first `steps` (None: all T), encoding the image in each."""
        image = self.setting.to_torch(image, self.device)
        plan = sampler_rows(self.cfg, lineage=True)[:steps]

        def sample():
            for _ in range(samples):
                self.predictor.sample(self._noise(image), image, plan, None)

        return self._done(sample)

    def _noise(self, image):
        shape = (len(image), self.cfg.data.classes, *image.shape[2:])
        noise = torch.randn(shape, device=self.device)
        return noise.to(memory_format=self.setting.memory_format)

    def _done(self, work):
        def call():
            # A number for the whole process, which other settings change.
            torch.set_num_threads(self.setting.threads)
            work()
            # A GPU works on after the call has returned.
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return call
