#include "commands/doctor.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

/// A /proc and /sys of the test's own, gone with the test.
class Doctor : public testing::Test {
 protected:
  void SetUp() override {
    root_ =
        fs::temp_directory_path() / ("torchpace-root-" + std::to_string(getpid()) + "-" +
                                     testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }

  /// Two sockets of two cores with two threads each; a version 2 cgroup; a quiet machine.
  void write_server() const {
    write("etc/os-release", "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n");
    write("proc/sys/kernel/osrelease", "6.1.0\n");
    write("proc/sys/kernel/randomize_va_space", "2\n");
    write(
        "proc/cpuinfo",
        "processor\t: 0\nmodel name\t: Example CPU\nmicrocode\t: 0x2b\nflags\t\t: fpu sse2 avx2\n");
    write("proc/meminfo",
          "MemTotal:       67108864 kB\nMemAvailable:   60000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 "
          "kB\n");
    write("proc/loadavg", "0.10 0.20 0.30 1/200 4242\n");
    write("proc/stat", "cpu  100 0 100 9800 0 0 0 0 0 0\n");
    write("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-7\n");
    write("proc/self/cgroup", "0::/job\n");
    write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
    write("sys/fs/cgroup/job/cpu.max", "max 100000\n");
    write("sys/fs/cgroup/job/memory.max", "max\n");
    write("sys/devices/system/cpu/online", "0-7\n");
    write("sys/devices/system/node/online", "0-1\n");
    for (int cpu = 0; cpu < 8; ++cpu) {
      const auto folder = "sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/";
      const auto core = std::to_string(cpu % 4);
      write(folder + "topology/thread_siblings_list", core + "," + std::to_string(cpu % 4 + 4));
      write(folder + "topology/physical_package_id", std::to_string(cpu % 4 / 2));
      write(folder + "cpufreq/scaling_governor", "performance\n");
    }
    write("sys/devices/system/cpu/intel_pstate/no_turbo", "1\n");
    write("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
    write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  }

  HostSources sources() const { return {.root = root_, .variables = variables_, .nvidia_smi = ""}; }
  Json host() const { return host_environment(sources()); }

  /// The finding on a topic.
  static Finding on(const std::string& topic, const Json& host,
                    const MachineTrial& trial = good_trial()) {
    for (const auto& finding : examine(host, trial)) {
      if (finding.topic == topic) return finding;
    }
    ADD_FAILURE() << "no finding on " << topic;
    return {};
  }

  static MachineTrial good_trial() {
    MachineTrial trial;
    trial.clock_cost_ns = 20;
    trial.clock_resolution_ns = 1;
    trial.steal_share = 0;
    trial.steal_share_since_start = 0;
    trial.cache = "/cache";
    trial.cache_free_bytes = 1e11;
    trial.python = "/usr/bin/python3";
    trial.torch = "2.11.0";
    return trial;
  }

  fs::path root_;
  std::map<std::string, std::string> variables_;
};

TEST_F(Doctor, ReadsAServer) {
  write_server();
  const auto found = host();
  EXPECT_EQ(found["os"], "Debian GNU/Linux 12");
  EXPECT_EQ(found["kernel"], "6.1.0");
  EXPECT_EQ(found["cpu"], "Example CPU");
  EXPECT_EQ(found["microcode"], "0x2b");
  EXPECT_EQ(found["sockets"], 2);
  EXPECT_EQ(found["cores"], 4);
  EXPECT_EQ(found["logical_cpus"], 8);
  EXPECT_EQ(found["smt"], true);
  EXPECT_EQ(found["numa_nodes"], 2);
  EXPECT_EQ(found["affinity"], "0-7");
  EXPECT_EQ(found["affinity_cores"], 4);
  EXPECT_TRUE(found["cgroup_cpus"].is_null());
  EXPECT_TRUE(found["cgroup_memory_bytes"].is_null());
  EXPECT_EQ(found["memory_bytes"], 67108864LL * 1024);
  EXPECT_EQ(found["swap_bytes"], 0);
  EXPECT_EQ(found["governor"], "performance");
  EXPECT_EQ(found["turbo"], false);
  EXPECT_EQ(found["load_average"], Json::array({0.1, 0.2, 0.3}));
  EXPECT_EQ(found["thp"], "madvise");
  EXPECT_EQ(found["aslr"], "full");
  EXPECT_TRUE(found["virtual_machine"].is_null());
  EXPECT_EQ(found["clocksource"], "tsc");
  EXPECT_EQ(found["gpus"], Json::array());
}

TEST_F(Doctor, FindsNothingWrongWithAQuietServer) {
  write_server();
  for (const auto& finding : examine(host(), good_trial())) {
    // Two sockets are worth a note.
    EXPECT_EQ(finding.level, finding.topic == "processor" ? "note" : "ok")
        << finding.topic << ": " << finding.text;
  }
}

TEST_F(Doctor, KnowsNothingOfAnEmptyTreeAndSaysSo) {
  const auto found = host();
  for (const char* key : {"os", "cpu", "cores", "affinity", "cgroup_cpus", "memory_bytes",
                          "governor", "turbo", "thp", "aslr", "clocksource"}) {
    EXPECT_TRUE(found[key].is_null()) << key << " " << found[key];
  }
  for (const auto& finding : examine(found, MachineTrial{})) {
    EXPECT_EQ(finding.text.find("nan"), std::string::npos) << finding.text;
  }
}

TEST_F(Doctor, TakesTheLeastQuotaAboveItsCgroup) {
  write_server();
  write("proc/self/cgroup", "0::/outer/inner\n");
  write("sys/fs/cgroup/outer/cpu.max", "150000 100000\n");
  write("sys/fs/cgroup/outer/inner/cpu.max", "400000 100000\n");
  write("sys/fs/cgroup/outer/memory.max", "1073741824\n");
  EXPECT_EQ(host()["cgroup_cpus"], 1.5);
  EXPECT_EQ(host()["cgroup_memory_bytes"], 1073741824);
  const auto finding = on("threads", host());
  EXPECT_EQ(finding.level, "warn");
  EXPECT_NE(finding.advice.find("--threads 1"), std::string::npos) << finding.advice;
  EXPECT_EQ(on("memory", host()).level, "warn");
}

TEST_F(Doctor, ReadsCgroupsOfVersionOne) {
  write_server();
  fs::remove(root_ / "sys/fs/cgroup/cgroup.controllers");
  write("proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n");
  write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "200000\n");
  write("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2147483648\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(host()["cgroup_cpus"], 2);
  EXPECT_EQ(host()["cgroup_memory_bytes"], 2147483648);
  write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
  EXPECT_TRUE(host()["cgroup_cpus"].is_null());
}

TEST_F(Doctor, CountsCoresOfTheAffinityMask) {
  write_server();
  write("proc/self/status", "Cpus_allowed_list:\t0,4-5\n");
  EXPECT_EQ(host()["affinity_cpus"], 3);
  EXPECT_EQ(host()["affinity_cores"], 2);  // 0 and 4 share one
  EXPECT_EQ(on("threads", host()).level, "note");
  EXPECT_NE(on("threads", host()).advice.find("--threads 2"), std::string::npos);
}

TEST_F(Doctor, WarnsOfTheGovernorAndNotesTurbo) {
  write_server();
  for (int cpu = 0; cpu < 8; ++cpu) {
    write("sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpufreq/scaling_governor",
          "powersave\n");
  }
  write("sys/devices/system/cpu/intel_pstate/no_turbo", "0\n");
  EXPECT_EQ(on("governor", host()).level, "warn");
  EXPECT_NE(on("governor", host()).advice.find("performance"), std::string::npos);
  EXPECT_EQ(on("turbo", host()).level, "note");
  write("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "performance\n");
  EXPECT_EQ(host()["governor"], "mixed");
}

TEST_F(Doctor, GradesTheLoad) {
  write_server();
  write("proc/loadavg", "2.0 1 1 1/2 3\n");
  EXPECT_EQ(on("load", host()).level, "note");
  write("proc/loadavg", "6.0 1 1 1/2 3\n");
  EXPECT_EQ(on("load", host()).level, "warn");

  // The average remembers what is over, the user's own build above all.
  auto trial = good_trial();
  trial.busy_share = 0.01;
  EXPECT_EQ(on("load", host(), trial).level, "ok");
  trial.busy_share = 0.12;  // one of eight
  EXPECT_EQ(on("load", host(), trial).level, "note");
  write("proc/loadavg", "0.0 1 1 1/2 3\n");
  trial.busy_share = 0.5;
  EXPECT_EQ(on("load", host(), trial).level, "warn");
  EXPECT_EQ(on("load", host(), trial).text,
            "other programs use 50 % of 8 CPUs now: they take turns with yours");
}

TEST_F(Doctor, WarnsOfSwapInUse) {
  write_server();
  write("proc/meminfo",
        "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 1000 kB\nSwapFree: 1000 kB\n");
  EXPECT_EQ(on("swap", host()).level, "note");
  write("proc/meminfo",
        "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 1000 kB\nSwapFree: 400 kB\n");
  EXPECT_EQ(on("swap", host()).level, "warn");
  EXPECT_NE(on("swap", host()).text.find("600 KiB"), std::string::npos);
}

TEST_F(Doctor, NotesHugePagesAndAFixedLayout) {
  write_server();
  write("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
  write("proc/sys/kernel/randomize_va_space", "0\n");
  EXPECT_EQ(on("huge pages", host()).level, "note");
  EXPECT_EQ(on("layout", host()).level, "note");
}

TEST_F(Doctor, SeesAVirtualMachineAndStolenTime) {
  write_server();
  write("proc/cpuinfo", "model name\t: Example\nflags\t\t: fpu hypervisor sse2\n");
  write("sys/class/dmi/id/sys_vendor", "QEMU\n");
  EXPECT_EQ(host()["virtual_machine"], "QEMU");
  EXPECT_EQ(on("virtual machine", host()).level, "note");
  auto trial = good_trial();
  trial.steal_share = 0.05;
  EXPECT_EQ(on("virtual machine", host(), trial).level, "warn");
  EXPECT_NE(on("virtual machine", host(), trial).text.find("5.0 %"), std::string::npos);
}

TEST_F(Doctor, ReadsStolenTimeFromProcStat) {
  write("proc/stat", "cpu  100 10 50 800 20 5 5 10 7 3\ncpu0 1 1 1 1\n");
  EXPECT_EQ(processor_times(root_).steal, 10);
  EXPECT_EQ(processor_times(root_).idle, 820);
  EXPECT_EQ(processor_times(root_).total, 1000);
}

TEST_F(Doctor, ListsOnlyVariablesThatChangeTheNumbers) {
  write_server();
  variables_ = {{"HOME", "/root"}, {"OMP_PROC_BIND", "true"}, {"LD_PRELOAD", "libx.so"}};
  EXPECT_EQ(host()["variables"], (Json{{"LD_PRELOAD", "libx.so"}, {"OMP_PROC_BIND", "true"}}));
  EXPECT_EQ(on("allocator", host()).level, "note");
  EXPECT_NE(on("allocator", host()).text.find("LD_PRELOAD=libx.so"), std::string::npos);
  EXPECT_EQ(on("BLAS, OpenMP", host()).level, "note");
  variables_["OMP_NUM_THREADS"] = "16";
  EXPECT_EQ(on("BLAS, OpenMP", host()).level, "warn");
}

TEST_F(Doctor, JudgesTheTimerTheDiskAndPython) {
  write_server();
  auto trial = good_trial();
  trial.clock_cost_ns = 900;
  EXPECT_EQ(on("timer", host(), trial).level, "warn");
  trial.cache_free_bytes = 1e8;
  EXPECT_EQ(on("disk", host(), trial).level, "warn");
  trial.report_packages = "matplotlib";
  EXPECT_EQ(on("python", host(), trial).level, "note");
  trial.torch.clear();
  EXPECT_EQ(on("python", host(), trial).level, "warn");
  trial.python.clear();
  EXPECT_EQ(on("python", host(), trial).level, "warn");
}

TEST_F(Doctor, ReadsGpusAndTheirThrottling) {
  write_server();
  auto found = host();
  found["gpus"] = parse_gpus(
      "NVIDIA Example, 550.1, 81920, 1980, 1980, 0x0000000000000001, 30, 70.5, 700.00, Enabled, 0\n"
      "NVIDIA Example, 550.1, 81920, 1200, 1980, 0x0000000000000024, 88, 699.1, 700.00, Enabled, "
      "0\n"
      "NVIDIA Example, 550.1, 81920, 1200, 1980, 0x0000000000000000, 50, 300, 700.00, Enabled, 97\n"
      "NVIDIA Other, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n");
  ASSERT_EQ(found["gpus"].size(), 4U);
  EXPECT_EQ(found["gpus"][0]["name"], "NVIDIA Example");
  EXPECT_EQ(found["gpus"][0]["memory_bytes"], 81920LL << 20);
  EXPECT_EQ(found["gpus"][0]["power_w"], 70.5);
  EXPECT_TRUE(found["gpus"][3]["clock_mhz"].is_null());
  EXPECT_EQ(on("GPU 0", found).level, "note");
  EXPECT_EQ(on("GPU 1", found).level, "warn");
  EXPECT_NE(on("GPU 1", found).text.find("held back by: power cap, heat (software)"),
            std::string::npos)
      << on("GPU 1", found).text;
  EXPECT_NE(on("GPU 2", found).text.find("97 % busy"), std::string::npos);
  EXPECT_EQ(on("GPU 3", found).text.find("nan"), std::string::npos);
}

TEST_F(Doctor, AsksBothNamesOfWhyAClockIsLow) {
  for (const std::string name : {"clocks_event_reasons", "clocks_throttle_reasons"}) {
    write("nvidia-smi",
          "#!/bin/sh\n"
          "case \"$1\" in *" +
              name +
              ".active*) ;; *) exit 6;; esac\n"
              "echo 'NVIDIA Example, 580.1, 81920, 1980, 1980, 0x0, 30, 70, 700, Enabled, 0'\n");
    fs::permissions(root_ / "nvidia-smi", fs::perms::owner_all);
    auto asked = sources();
    asked.nvidia_smi = root_ / "nvidia-smi";
    const auto found = host_environment(asked)["gpus"];
    ASSERT_EQ(found.size(), 1U) << name;
    EXPECT_EQ(found[0]["throttle"], "0x0") << name;
  }
}

TEST_F(Doctor, PrintsALineATopicAndJson) {
  write_server();
  DoctorOptions options;
  options.python = (root_ / "no-python").string();
  options.cache = root_ / "cache/not/yet/there";
  options.sources = sources();
  std::ostringstream text;
  EXPECT_EQ(run_doctor(options, text), 0);
  EXPECT_NE(text.str().find("ok    governor        performance"), std::string::npos) << text.str();
  EXPECT_NE(text.str().find("warn  python          no interpreter was found"), std::string::npos);
  EXPECT_NE(text.str().find("free for the cache"), std::string::npos) << text.str();
  options.json = true;
  std::ostringstream json;
  EXPECT_EQ(run_doctor(options, json), 0);
  const auto parsed = Json::parse(json.str());
  EXPECT_EQ(parsed["host"]["cpu"], "Example CPU");
  EXPECT_EQ(parsed["findings"][0]["topic"], "processor");
}

TEST(DoctorLimits, AreTextOrThoseOfResults) {
  std::ostringstream text, json;
  EXPECT_EQ(run_limits(1, false, text), 0);
  EXPECT_NE(text.str().find("1 thread, each bound"), std::string::npos) << text.str();
  for (const char* part :
       {"float32", "float64", "GFLOP/s", "reads of 32.0 KiB", "reads of 256 MiB"})
    EXPECT_NE(text.str().find(part), std::string::npos) << part << "\n" << text.str();
  EXPECT_EQ(run_limits(1, true, json), 0);
  const auto found = Json::parse(json.str());
  EXPECT_EQ(found["threads"], 1);
  EXPECT_GT(found["fma_flops_per_s"]["float64"], 0);
  EXPECT_EQ(found["read"].size(), 6u);
  EXPECT_EQ(found["read"][5]["bytes"], 256 << 20);
  EXPECT_GT(found["read"][5]["seconds"], 0);
  EXPECT_FALSE(found["isa"].get<std::string>().empty());
  EXPECT_EQ(found.size(), 4u);  // no more than results.schema.json says of `limits`
}

}  // namespace
}  // namespace torchpace::cli
