// How far apart two cores are: the time of a message from one to the other. The host of a virtual
// machine moves its cores between the dies of a processor, for seconds or for minutes; then every
// parallel step waits longer at its barriers, and one runtime has more barriers than another.
#pragma once

namespace torchpace::cli {

/// Time of a message in ns between the cores of the first and the last of `threads` bound threads:
/// half a round trip between two threads that spin, the median of several. Takes 0.2 ms on idle
/// cores. NaN where there are no two cores to ask, or threads cannot be bound.
double message_ns(int threads);

/// Whether two times of a message are of the same place of the cores: within a factor of 2.
/// Repeated readings differ by 1.3 at most; cores of one die and of two dies by 3 to 6.
bool same_place(double a_ns, double b_ns);

}  // namespace torchpace::cli
