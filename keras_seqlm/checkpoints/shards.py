"""State whose parts lie in several JAX processes: each of them writes, and reads, its own through Orbax.

Reference: https://orbax.readthedocs.io
"""

import shutil

import numpy as np


class Shards:
    """A folder that all processes of a run write together.

    Args:
        folder: where it is to appear, on storage that all of them share.
        arrays: name -> `jax.Array`; the same names, in the same order, in each process. They are copied to the host
            before this returns, so the next step may overwrite them.

    Raises:
        ModuleNotFoundError: orbax-checkpoint is not installed.
    """

    def __init__(self, folder, arrays):
        self.folder = self._first_folder = folder
        self.shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        self._checkpointer = _orbax().StandardCheckpointer()
        self._checkpointer.save(folder.resolve(), arrays, force=True)

    def wait(self):
        """Until every process has written its parts; raises what went wrong."""
        try:
            self._checkpointer.wait_until_finished()
        finally:
            self._checkpointer.close()

    def files(self):
        """Name in the folder -> path."""
        return {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}

    def move(self, folder):
        """Rename the folder."""
        self.folder = self.folder.rename(folder)

    def move_back(self):
        """Rename it to what it was called at first, where it does not go with the folder that it was moved into."""
        if self.folder != self._first_folder:
            self.move(self._first_folder)

    def delete(self):
        """Free its room on the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read(folder, shapes, shardings=None):
    """The arrays in a folder that `Shards` wrote, also on fewer or more processes than wrote it.

    Args:
        folder: of `Shards`.
        shapes: name -> (dtype name, shape).
        shardings: name -> `jax.sharding.Sharding`; each process then reads the parts that it is to hold. None reads all.

    Returns:
        name -> `jax.Array`, or, without shardings, NumPy array.
    """
    ocp = _orbax()
    if shardings is None:
        wanted = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes}
        return ocp.PyTreeCheckpointer().restore(folder.resolve(), restore_args=wanted)
    import jax

    wanted = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=shardings[name]) for name, (dtype, shape) in shapes.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.resolve(), wanted)


def _orbax():
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'weights that lie spread over several processes are saved by Orbax: pip install "keras-seqlm[jax]"'
        ) from error
    return ocp
