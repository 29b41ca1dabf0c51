"""Makes the built-in model of `lamina-node-agent selftest`: y = B relu(2x + 1)."""

import pathlib

import torch


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 2)
        with torch.no_grad():
            self.first.weight.copy_(2 * torch.eye(4))
            self.first.bias.fill_(1)
            self.second.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1]]))
            self.second.bias.zero_()

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


model = torch.jit.trace(Tiny().eval(), torch.ones(1, 4))
assert model(torch.tensor([[1.0, 2, 3, 4]])).tolist() == [[24, -4]]
torch.jit.save(model, pathlib.Path(__file__).with_name("model.torchscript"))
