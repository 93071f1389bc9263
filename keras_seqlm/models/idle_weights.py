"""Models on other models, some of whose variables they do not train."""

from keras_seqlm.models.sequence_model import SequenceModel


class IdleWeights(SequenceModel):
    """A model on others: of their variables those in `idle_variables` are not trained through it."""

    @property
    def idle_variables(self):
        """A list; of a model in a file Keras keeps that it is frozen, and not that its layers are, so those stand here, too."""
        raise TypeError(f"{type(self).__name__} must define idle_variables")

    @property
    def trainable_variables(self):
        idle = {id(variable) for variable in self.idle_variables}
        return [variable for variable in super().trainable_variables if id(variable) not in idle]

    @property
    def trainable_weights(self):
        return self.trainable_variables

    @property
    def non_trainable_variables(self):
        trained = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in self.variables if id(variable) not in trained]

    @property
    def non_trainable_weights(self):
        trained = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in self.weights if id(variable) not in trained]
