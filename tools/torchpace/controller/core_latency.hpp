// How far apart two cores are: the time of a message from one to the other. The host of a virtual
// machine moves its cores between the dies of a processor, for seconds or for minutes; then every
// parallel step waits longer at its barriers, and one runtime has more barriers than another.
#pragma once

#include <functional>
#include <vector>

namespace torchpace::cli {

/// Time of a message in ns between the cores of the first and the last of `threads` bound threads
/// (others are not asked): half a round trip between two threads that spin, the median of several.
/// Takes 0.2 ms on idle cores, 10 ms at most. NaN where there are no two cores to ask, threads
/// cannot be bound, or messages take longer than that.
double core_latency_ns(int threads);

/// Whether two times of a message are of the same place of the cores: within a factor of 2.
/// Repeated readings differ by 1.3 at most; cores of one die and of two dies by 3 to 6.
bool same_place(double a_ns, double b_ns);

/// The cores are farther apart than usual. False where either is not known.
bool is_far(double ns, double usual_ns);

/// Asks where the cores are, and remembers.
class CoreWatch {
 public:
  /// `source` is asked for the time of a message; without one nothing is ever known. `seen` is what
  /// was seen before.
  explicit CoreWatch(std::function<double()> source, std::vector<double> seen_ns);

  /// The time of a message now. NaN: not known.
  double ask();

  /// Median of all that was seen. NaN: nothing was.
  double usual_ns() const;

  /// The time of a message while the cores are farther apart than usual, else NaN. Asks again and
  /// again before it believes that, since a core that was idle is slow at first. Not remembered.
  double far_ns() const;

 private:
  std::function<double()> source_;
  std::vector<double> seen_ns_;
};

}  // namespace torchpace::cli
