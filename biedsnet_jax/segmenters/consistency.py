"""Consistency distillation: one step of a student for many of its teacher's sampler.

The grid is N times t_1 < ... < t_N, with x_t = q_sample(x_0, t_n). f is the mask that a
network predicts. The student's f(x_t, t_n) must equal the target, gradient stopped:

    n > 1    x_s = the teacher's DDIM step from x_t at t_n to t_{n-1}
             target = student f(x_s, t_{n-1})
    n = 1    target = teacher f(x_t, t_1), since the DDIM step goes to alpha_bar = 1

Source: Song et al. 2023, algorithm 2. The target network is the student itself, without
an average of its past (Song & Dhariwal 2024, section 3.2).
"""

import dataclasses

import jax
import jax.numpy as jnp

from biedsnet_jax.diffusion import process, sampler, schedule
from biedsnet_jax.segmenters import segmenter
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from biedsnet_jax.types import Batch, Image, Mask, Noisy, PRNGKey


@dataclasses.dataclass(frozen=True)
class Consistency:
    """A segmenter as `student`, with a loss against its teacher.

    The loss reads the teacher's variables, which stay fixed, in `variables["teacher"]`.
    """

    student: Diffusion
    grid: int = 10  # N
    truth_weight: float = 0.0  # of the student's own loss against the true mask

    @property
    def draws_samples(self) -> bool:
        """See Segmenter."""
        return self.student.draws_samples

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> segmenter.Variables:
        """See Segmenter."""
        return self.student.init(key, shape)

    def predict(
        self,
        variables: segmenter.Variables,
        image: Image,
        keys: segmenter.Keys,
        *,
        ensemble: int,
    ) -> segmenter.Probabilities:
        """See Segmenter."""
        return self.student.predict(variables, image, keys, ensemble=ensemble)

    def trajectory(
        self, variables: segmenter.Variables, image: Image, keys: segmenter.Keys
    ) -> sampler.Trajectory:
        """See Segmenter."""
        return self.student.trajectory(variables, image, keys)

    def loss(
        self,
        variables: segmenter.Variables,
        batch: Batch,
        key: PRNGKey,
        *,
        train: bool,
    ) -> segmenter.Loss:
        """See Segmenter."""
        key_n, key_noise, key_dropout = jax.random.split(key, 3)
        teacher = variables["teacher"]
        own = {name: value for name, value in variables.items() if name != "teacher"}
        image = batch["image"]
        y = batch["mask"]
        known = batch.get("known")
        noises = self.student.schedule
        grid = schedule.select_timesteps(noises.timesteps, self.grid)
        times = jnp.asarray(grid[::-1])
        # Every example has a place on the grid of its own.
        n = jax.random.randint(key_n, (len(y),), 0, self.grid)
        t = times[n]
        s = times[jnp.maximum(n - 1, 0)]
        noise = jax.random.normal(key_noise, y.shape)
        x_t = process.q_sample(noises, self.student.encode(y), t, noise)

        p_teacher = self._denoised(teacher, x_t, image, t)
        x_0 = self.student.encode(p_teacher)
        # A DDIM step keeps the noise that x_0 leaves in x_t.
        eps = process.eps_from_x_0(noises, x_t=x_t, x_0=x_0, t=t)
        x_s = process.q_sample(noises, x_0, s, eps)
        p_student = self._denoised(own, x_s, image, s)
        at_first = (n == 0)[:, None, None, None]
        target = jax.lax.stop_gradient(jnp.where(at_first, p_teacher, p_student))

        inputs = x_t, image, t
        (logits, out), batch_stats = segmenter.apply(
            self.student.network, own, inputs, key_dropout, train
        )
        heads = [logits, *out.get("supervision", [])]
        # The teacher has a mask where the truth is not known too.
        consistency = jnp.mean(self.student.heads_loss(heads, target, None))
        truth = jnp.mean(self.student.heads_loss(heads, y, known))
        train_dice = segmenter.train_dice(logits > 0, y, known)
        metrics = {"consistency": consistency, "truth": truth, "train_dice": train_dice}
        return consistency + self.truth_weight * truth, (metrics, batch_stats)

    def _denoised(self, variables, x_t: Noisy, image: Image, t: process.Times) -> Mask:
        """Probability of the mask, as predicted outside training."""
        logits, _ = self.student.network.apply(variables, x_t, image, t, train=False)
        return jax.nn.sigmoid(logits)
