// What this machine lets us use: cores, memory, GPUs. Read from the kernel, nothing is measured.
#pragma once

namespace torchpace::cli {

/// Physical cores in the affinity mask, and no more than the cgroup's CPU quota; at least 1.
int usable_cores();

/// Bytes that can be taken: MemAvailable, and no more than the cgroup's limit.
double available_bytes();

/// Whether a device node or tool says that there is an NVIDIA GPU.
bool has_nvidia_device();

}  // namespace torchpace::cli
