import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from heliostat.train.run_folder.stored_dtype import begun_in, stored_dtype, trained_dtype
from tests.support import small

DTYPES = [torch.float32, torch.bfloat16]


def write_file(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


def write_shards(folder, tensors):
    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    save(named | {"optimizer.0": torch.zeros(2)}, storage_writer=FileSystemWriter(folder / "shards"), no_dist=True)


@pytest.mark.parametrize("write", [write_file, write_shards])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_type_of_a_checkpoint_is_that_of_its_weights(write, dtype, tmp_path):
    write(tmp_path, {"weight": torch.zeros(3, dtype=dtype)})
    assert stored_dtype(tmp_path) == dtype


@pytest.mark.parametrize("write", [write_file, write_shards])
def test_a_bfloat16_model_that_keeps_a_few_tensors_longer_is_one(write, tmp_path):
    write(tmp_path, {"weight": torch.zeros(3, dtype=torch.bfloat16), "scale": torch.zeros(1)})
    assert stored_dtype(tmp_path) == torch.bfloat16


@pytest.mark.parametrize("content", [None, b"", b"broken"])
def test_what_cannot_be_read_has_no_type(content, tmp_path):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    assert stored_dtype(tmp_path) is None


@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("stored", [None, *DTYPES])
def test_only_what_the_recipe_leaves_open_is_filled_in(asked, stored, tmp_path):
    recipe = small.recipe(tmp_path, model__dtype=asked)
    name = {None: "auto", torch.float32: "float32", torch.bfloat16: "bfloat16"}[stored]
    assert begun_in(recipe, stored).model.dtype == (name if asked == "auto" else asked)
    assert recipe.model.dtype == asked


def test_the_type_that_is_trained_is_not_that_of_frozen_weights():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2).bfloat16().requires_grad_(False), torch.nn.Linear(2, 2))
    assert trained_dtype(model) == torch.float32
    assert trained_dtype(model.requires_grad_(False)) is None
