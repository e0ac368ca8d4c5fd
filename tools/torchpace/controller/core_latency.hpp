// Core-to-core latency: the time that a message from one core to another takes. The host of a
// virtual machine migrates vCPUs between the dies of a processor, for seconds or for minutes; then
// every parallel step waits longer at its barriers, and one runtime has more barriers than another.
#pragma once

namespace torchpace::cli {

/// Latency in ns between the cores of the first and the last of `threads` bound threads
/// (others are not asked): half a round trip between two threads that spin, the median of several.
/// Takes 0.2 ms on idle cores, 10 ms at most. NaN where there are no two cores to ask, threads
/// cannot be bound, or messages take longer than that.
double core_latency_ns(int threads);

/// Whether two latencies are of the same placement of the vCPUs: within a factor of 2.
/// Repeated readings differ by 1.3 at most; cores of one die and of two dies by 3 to 6.
bool same_place(double a_ns, double b_ns);

}  // namespace torchpace::cli
