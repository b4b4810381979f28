"""What one of several processes does in the test of Muon's shared work; a module, so that a new process finds it."""

import torch

from vgt.training import muon


def begun(kind):
    """Three matrices, and an optimiser of them."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((128, 256), (256, 128), (160, 160))]
    return parameters, kind(parameters, lr=0.02, weight_decay=0.1)


def learn(parameters, optimiser, steps):
    """Take steps with gradients that are the same in every process."""
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
        optimiser.step()


def work(folder):
    """Learn, and write the parameters and how many matrices this process orthogonalised."""
    plain, count = muon.orthogonalised, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return plain(*arguments)

    muon.orthogonalised = counted
    parameters, optimiser = begun(muon.Muon)
    learn(parameters, optimiser, 3)
    found = {"parameters": [parameter.detach() for parameter in parameters], "orthogonalised": count}
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
