// Devices without naming one: choice, synchronisation, events, memory high-water marks. Compiles
// against a CPU build.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

namespace torchpace {

/// What this machine or this build of torch lacks: a reason to skip, not a failure.
struct DeviceUnavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// "auto" (CUDA when there is one), "cpu", "cuda", "cuda:1". Throws c10::Error when the text is no
/// such device, and DeviceUnavailable when it is not here.
inline torch::Device choose_device(const std::string& text) {
  if (text == "auto")
    return torch::cuda::is_available() ? torch::Device(torch::kCUDA, 0)
                                       : torch::Device(torch::kCPU);
  torch::Device device(text);
  if (device.is_cpu()) return torch::Device(torch::kCPU);
  TORCH_CHECK(device.is_cuda(), "device: expected auto, cpu or cuda:N, got '", text, "'");
  const int count = torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
  const int index = device.has_index() ? device.index() : 0;
  if (index >= count) {
    throw DeviceUnavailable(
        "device " + text + ": this machine and this torch offer " + std::to_string(count) +
        " CUDA devices; use --device cpu, or a CUDA build of torch on a machine with a GPU");
  }
  return torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(index));
}

/// Waits until the device has done all that was enqueued. Nothing on the CPU.
inline void synchronize(const torch::Device& device) {
  if (!device.is_cpu()) torch::cuda::synchronize(device.index());
}

/// A point in the current stream of a device that is not the CPU.
class DeviceEvent {
 public:
  explicit DeviceEvent(const torch::Device& device)
      : device_(device), event_(device.type(), c10::EventFlag::BACKEND_DEFAULT) {}
  void record() { event_.record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_)); }
  void synchronize() const { event_.synchronize(); }
  /// Time from this to the later event in ns. Both must have completed.
  double elapsed_ns(const DeviceEvent& later) const {
    return event_.elapsedTime(later.event_) * 1e6;
  }

 private:
  torch::Device device_;
  c10::Event event_;
};

struct Memory {
  double resident_bytes = 0;
  double resident_peak_bytes = 0;  // since the process began, or since reset_peak_memory
  double device_allocated_peak_bytes = 0;
  double device_reserved_peak_bytes = 0;
};

/// Starts new high-water marks. The resident one is left as it is where the kernel refuses
/// (/proc/self/clear_refs).
inline void reset_peak_memory(const torch::Device& device) {
  std::ofstream("/proc/self/clear_refs") << '5';
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->resetPeakStats(device.index());
}

/// Resident memory of this process and, off the CPU, of torch's caching allocator. What lives
/// outside that allocator (context, library workspaces) is not in it.
inline Memory memory(const torch::Device& device) {
  Memory result;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    double kib = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %lf kB", &kib) == 1)
      result.resident_peak_bytes = kib * 1024;
    if (std::sscanf(line.c_str(), "VmRSS: %lf kB", &kib) == 1) result.resident_bytes = kib * 1024;
  }
  if (!device.is_cpu()) {
    const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
    result.device_allocated_peak_bytes = static_cast<double>(stats.allocated_bytes[0].peak);
    result.device_reserved_peak_bytes = static_cast<double>(stats.reserved_bytes[0].peak);
  }
  return result;
}

}  // namespace torchpace
