"""A method that predicts and nothing else, for tests of what uses one."""


class Stub:
    """A `segmenter.Segmenter` whose subclasses say what it predicts."""

    draws_samples = True

    def init(self, key, shape):
        raise NotImplementedError

    def loss(self, variables, batch, key, *, train):
        raise NotImplementedError

    def predict(self, variables, image, keys, *, ensemble):
        raise NotImplementedError

    def trajectory(self, variables, image, keys):
        raise NotImplementedError
