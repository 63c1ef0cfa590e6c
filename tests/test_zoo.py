"""Other people's networks under a hypernetwork: torchvision's up to 30 M parameters, and timm's, a family each."""

import copy
import gc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetcl.model import HyperModel
from hnetcl.modules import main_logits
from hnetcl.vision import import_torchvision
from hnetcl.wrapping import wrap

TORCHVISION = [
    "convnext_tiny",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_1_6gf",
    "regnet_x_3_2gf",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_y_1_6gf",
    "regnet_y_3_2gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
]
TIMM = [
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "regnety_002",
    "densenet121",
    "resnetv2_50",
    "levit_128s",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "gmlp_ti16_224",
    "resmlp_12_224",
    "poolformer_s12",
    "cait_xxs24_224",
    "crossvit_tiny_240",
    "pit_ti_224",
    "visformer_tiny",
    "xcit_nano_12_p16_224",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "efficientformer_l1",
    "repvgg_a0",
    "ghostnet_100",
    "mnasnet_small",
    "dla34",
    "hrnet_w18_small",
    "res2net50_14w_8s",
    "selecsls42",
    "ese_vovnet19b_dw",
    "cspresnet50",
    "nf_resnet50",
    "eca_nfnet_l0",
    "botnet26t_256",
    "halonet26t",
    "lambda_resnet26t",
    "maxvit_nano_rw_256",
    "tiny_vit_5m_224",
    "fastvit_t8",
    "mobileone_s0",
    "rexnet_100",
    "skresnet18",
    "resnest14d",
    "nest_tiny",
    "twins_svt_small",
    "eva02_tiny_patch14_224",
    "tnt_s_patch16_224",
    "coat_tiny",
    "convmixer_768_32",
    "pvt_v2_b0",
    "sequencer2d_s",
    "volo_d1_224",
    "efficientvit_b0",
    "repvit_m0_9",
    "mambaout_femto",
]
LARGE = {"crossvit_tiny_240": 240, "efficientformer_l1": 224, "halonet26t": 256}  # these take no small images
QUICK = {"resnet18", "mobilenet_v3_small", "levit_128s"}


def torchvision_net(name: str) -> tuple[nn.Module, int]:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net: nn.Module = import_torchvision().models.get_model(name, num_classes=3, **options)
    return net, 299 if name == "inception_v3" else 64  # less is too small for its auxiliary classifier


def timm_net(name: str) -> tuple[nn.Module, int]:
    import_torchvision()  # which timm imports
    timm = pytest.importorskip("timm")
    size = LARGE.get(name, 64)
    try:
        net: nn.Module = timm.create_model(name, num_classes=3, img_size=size)
    except TypeError:  # it takes images of any size
        net = timm.create_model(name, num_classes=3)
    return net, size


@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(make, name, id=f"{make.__name__}-{name}", marks=[] if name in QUICK else pytest.mark.slow)
        for make, names in ((torchvision_net, TORCHVISION), (timm_net, TIMM))
        for name in names
    ],
)
def test_works_like_the_net_itself(make: Callable[[str], tuple[nn.Module, int]], name: str) -> None:
    """In float64, so that nothing hides behind rounding: the same outputs as the untouched network with the weights of a task,
    in training and evaluation, statistics and buffers included; tasks don't touch each other; copies and reloads are equal."""
    torch.manual_seed(0)
    net, size = make(name)
    net.double()
    own = [copy.deepcopy(net) for _ in range(2)]  # a network per task
    model = wrap(net, 2, hidden=[4], embedding_dim=4, chunk_embedding_dim=4, chunk_size=50_000)
    fresh = copy.deepcopy(model)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    for task in range(2):  # a training step each
        write(own[task], model, task)
        torch.manual_seed(1)
        expected = main_logits(own[task](x + task)).detach()
        torch.manual_seed(1)
        outputs = main_logits(model(x + task, task))
        close(outputs.detach(), expected)
        F.cross_entropy(outputs, torch.tensor([0, 2])).backward()
        learns = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learns if p.numel())
        with torch.no_grad():
            for p in learns:
                p.sub_(1e-4 * p.grad.sign() if p.grad is not None else 0)  # small: outputs stay of the same size
                p.grad = None
    model.eval()
    with torch.no_grad():
        logits = []
        for task in range(2):
            write(own[task], model, task)
            logits.append(model(x, task))
            close(logits[task], own[task].eval()(x))
            close(model.plain(task)(x), logits[task])
        for task in range(2):
            assert torch.equal(model(x, task), logits[task])  # no trace of the other, none of the first call
        close(model.all_tasks(x), torch.stack(logits))
        for other in (copy.deepcopy(model), copy.deepcopy(fresh), fresh):
            if other is fresh:
                other.load_tensors(model.saved_tensors())
            else:
                other.load_state_dict(model.state_dict())
            for task in range(2):
                assert torch.equal(other.eval()(x, task), logits[task])
        del own, fresh, other
    gc.collect()


@torch.no_grad()
def write(net: nn.Module, model: HyperModel, task: int) -> None:
    for name, value in model.hnet(task).items():
        net.get_parameter(name).copy_(value)


def close(a: Tensor, b: Tensor) -> None:
    assert a.isfinite().all()
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))
