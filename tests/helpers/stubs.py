"""A segmenter that only predicts, for tests of what uses one."""


class Stub:
    """A `segmenter.Segmenter` whose subclasses override `predict`."""

    draws_samples = True

    def init(self, key, shape):
        raise NotImplementedError

    def loss(self, variables, batch, key, *, train):
        raise NotImplementedError

    def predict(self, variables, image, keys, *, ensemble):
        raise NotImplementedError

    def trajectory(self, variables, image, keys):
        raise NotImplementedError
