"""What VGT costs, beside a plain baseline on the same weights and noise: `python -m benchmarks`."""
