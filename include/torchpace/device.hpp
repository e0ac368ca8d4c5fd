// Devices without naming one: choice, synchronization, events, memory high-water marks. Compiles
// against a CPU build.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <torchpace/settings.hpp>

namespace torchpace {

/// What this machine or this build of torch lacks: a reason to skip, not a failure.
struct DeviceUnavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

/// Throws SettingsError where the text is not a CPU or a CUDA device.
inline torch::Device parse_device(const std::string& text) {
  try {
    const torch::Device device(text);
    if (device.is_cpu() || device.is_cuda()) return device;
  } catch (const c10::Error&) {  // lists all devices that torch has ever had
  }
  throw SettingsError("device: expected auto, cpu, cuda or cuda:N, got '" + text + "'");
}

}  // namespace detail

/// "auto" (CUDA when there is one), "cpu", "cuda", "cuda:1". Throws SettingsError when the text is
/// no such device, and DeviceUnavailable when it is not here.
inline torch::Device choose_device(const std::string& text) {
  if (text == "auto")
    return torch::cuda::is_available() ? torch::Device(torch::kCUDA, 0)
                                       : torch::Device(torch::kCPU);
  const auto device = detail::parse_device(text);
  if (device.is_cpu()) return torch::Device(torch::kCPU);
  const int count = torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
  const int index = device.has_index() ? device.index() : 0;
  if (index >= count) {
    throw DeviceUnavailable(
        "device " + text + ": this machine and this torch offer " + std::to_string(count) +
        " CUDA devices; use --device cpu, or a CUDA build of torch on a machine with a GPU");
  }
  return torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(index));
}

namespace detail {

/// A file of /proc, empty where it cannot be read.
inline std::string read_text(const char* path) {
  std::string text;
  std::FILE* const file = std::fopen(path, "r");
  if (file == nullptr) return text;
  char buffer[4096];
  for (std::size_t count = 0; (count = std::fread(buffer, 1, sizeof buffer, file)) > 0;)
    text.append(buffer, count);
  std::fclose(file);
  return text;
}

/// Takes the first line, without its end, off the text.
inline std::string_view take_line(std::string_view& text) {
  const auto line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(line.size() + 1, text.size()));
  return line;
}

/// The driver's number, or its UUID, of the device that CUDA calls `index` in this process.
inline std::string visible_device(int index) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  std::string_view names(visible == nullptr ? "" : visible);
  for (int i = 0; !names.empty(); ++i) {
    const auto name = names.substr(0, names.find(','));
    if (i == index && !name.empty()) return std::string(name);
    names.remove_prefix(std::min(name.size() + 1, names.size()));
  }
  return std::to_string(index);
}

}  // namespace detail

/// Waits until the device has done all that was enqueued. Nothing on the CPU.
inline void synchronize(const torch::Device& device) {
  if (!device.is_cpu()) torch::cuda::synchronize(device.index());
}

/// Seeds the generators that a case on `device` draws from: that of the CPU, and the device's own.
/// torch::manual_seed seeds those of all GPUs, and initializes CUDA for it.
inline void seed_generators(uint64_t seed, const torch::Device& device) {
  const auto set = [seed](at::Generator generator) {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  };
  set(at::globalContext().defaultGenerator(torch::kCPU));
  if (!device.is_cpu()) set(at::globalContext().defaultGenerator(device));
}

/// The stream of a device that is not the CPU on which work is enqueued now.
inline c10::Stream current_stream(const torch::Device& device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

/// A point in a stream, which is looked up and made once: recording it again costs one call of the
/// driver.
class DeviceEvent {
 public:
  explicit DeviceEvent(const c10::Stream& stream)
      : stream_(stream), event_(stream.device_type(), c10::EventFlag::BACKEND_DEFAULT) {
    record();
  }
  void record() { event_.record(stream_); }
  void synchronize() const { event_.synchronize(); }
  /// Time from this to the later event in ns. Both must have completed.
  double elapsed_ns(const DeviceEvent& later) const {
    return event_.elapsedTime(later.event_) * 1e6;
  }

 private:
  c10::Stream stream_;
  c10::Event event_;
};

/// Bytes in use on a CUDA device, by all processes, on the word of its driver (NVML). Makes no CUDA
/// context. 0 on the CPU, and where the driver's library or the device cannot be asked.
///
/// The driver counts the device and not the process, which in a container does not know its own
/// number there. So what a process holds is the difference to a moment before its first use of
/// CUDA: context, kernels and whatever lies outside of torch's allocator are in it. It is right
/// while no other process takes or frees memory of the device.
inline double driver_bytes(const torch::Device& device) {
  if (!device.is_cuda()) return 0;
  static void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return 0;
  const auto call = [](const char* name, auto... arguments) {
    const auto function = reinterpret_cast<int (*)(decltype(arguments)...)>(dlsym(library, name));
    return function != nullptr && function(arguments...) == 0;
  };
  struct {
    unsigned long long total, free, used;
  } memory{};
  void* handle = nullptr;
  const auto name = detail::visible_device(device.has_index() ? device.index() : 0);
  const bool found =
      call("nvmlInit_v2") &&
      (name.find_first_not_of("0123456789") == std::string::npos
           ? call("nvmlDeviceGetHandleByIndex_v2", static_cast<unsigned>(std::stoul(name)), &handle)
           : call("nvmlDeviceGetHandleByUUID", name.c_str(), &handle)) &&
      call("nvmlDeviceGetMemoryInfo", handle, &memory);
  return found ? static_cast<double>(memory.used) : 0;
}

struct Memory {
  double resident_bytes = 0;
  double resident_peak_bytes = 0;  // since the process began, or since reset_peak_memory
  double device_allocated_peak_bytes = 0;
  double device_reserved_peak_bytes = 0;
};

namespace detail {

/// torch's caching allocator of a device; none for the CPU, and none where nothing has initialized
/// it: there it holds nothing, and throws when it is asked.
inline c10::DeviceAllocator* used_allocator(const torch::Device& device) {
  if (device.is_cpu()) return nullptr;
  auto* const allocator = c10::getDeviceAllocator(device.type());
  return allocator->initialized() ? allocator : nullptr;
}

}  // namespace detail

/// Starts new high-water marks. The resident one is left as it is where the kernel refuses
/// (/proc/self/clear_refs).
inline void reset_peak_memory(const torch::Device& device) {
  if (std::FILE* const file = std::fopen("/proc/self/clear_refs", "w"); file != nullptr) {
    std::fputc('5', file);
    std::fclose(file);
  }
  if (auto* const allocator = detail::used_allocator(device))
    allocator->resetPeakStats(device.index());
}

/// Resident memory of this process and, off the CPU, of torch's caching allocator. What lives
/// outside that allocator (context, library workspaces) is not in it.
inline Memory memory(const torch::Device& device) {
  Memory result;
  const auto status = detail::read_text("/proc/self/status");
  const auto bytes = [&status](const char* key) {
    const auto at = status.find(key);
    return at == std::string::npos ? 0 : std::strtod(status.c_str() + at + 7, nullptr) * 1024;
  };
  result.resident_peak_bytes = bytes("\nVmHWM:");  // in kB
  result.resident_bytes = bytes("\nVmRSS:");
  if (auto* const allocator = detail::used_allocator(device)) {
    const auto stats = allocator->getDeviceStats(device.index());
    result.device_allocated_peak_bytes = static_cast<double>(stats.allocated_bytes[0].peak);
    result.device_reserved_peak_bytes = static_cast<double>(stats.reserved_bytes[0].peak);
  }
  return result;
}

}  // namespace torchpace
