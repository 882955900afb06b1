#include "cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <strings.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

namespace dspark {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// How long threads wait in a loop before they sleep: for work, about as long as a step has none;
// for the last ones at work, little, since one that has lost its core may get the one which sleeps.
constexpr microseconds kForWork{200}, kForOthers{20};

// Whether threads may wait in loops at all: what OpenMP is told.
bool may_spin() {
  const char* policy = std::getenv("OMP_WAIT_POLICY");
  return policy == nullptr || strcasecmp(policy, "passive") != 0;
}

inline void relax() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until ready(value) holds, in a loop at first; returns the value. kYield: in the loop,
// whoever else wants this core has it, such as torch's own threads when they have work between
// ours.
template <bool kYield, typename F>
uint32_t await(const std::atomic<uint32_t>& value, microseconds spin, const F& ready) {
  uint32_t now = value.load();
  if (ready(now)) return now;
  static const bool spins = may_spin();
  if (spins) {
    const auto end = Clock::now() + spin;
    do {
      for (int i = 0; i < 16; ++i) {
        relax();
        now = value.load();
        if (ready(now)) return now;
      }
      if constexpr (kYield) sched_yield();
    } while (Clock::now() < end);
  }
  for (; !ready(now); now = value.load()) value.wait(now);
  return now;
}

class Pool {
 public:
  void run(int64_t workers, void (*body)(void*, int64_t), void* context) {
    const std::unique_lock lock(owner_, std::try_to_lock);
    if (!lock || !has_threads(workers - 1)) return body(context, 0);  // no sharing
    body_ = body, context_ = context, workers_ = workers;
    job_.fetch_add(1);  // odd: there is work
    job_.notify_all();
    body(context, 0);
    job_.fetch_add(1);  // nobody comes in any more
    await<false>(inside_, kForOthers, [](uint32_t inside) { return inside == 0; });
  }

 private:
  // Starts threads until there are so many; whether there is one at least.
  bool has_threads(int64_t count) {
    sigset_t all, before;
    sigfillset(&all);
    for (; threads_ < count; ++threads_) {
      pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
      try {
        std::thread(&Pool::serve, this, threads_ + 1).detach();
      } catch (const std::system_error&) {
        count = 0;
      }
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      if (count == 0) break;
    }
    return threads_ > 0;
  }

  void serve(int64_t worker) {
    for (uint32_t last = 0;;) {
      last = await<true>(job_, kForWork, [&](uint32_t job) { return job != last && job % 2 == 1; });
      inside_.fetch_add(1);
      // the job is the same still: its owner will see us inside, and wait
      if (job_.load() == last && worker < workers_) body_(context_, worker);
      if (inside_.fetch_sub(1) == 1) inside_.notify_all();
    }
  }

  std::mutex owner_;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t workers_ = 0, threads_ = 0;
  alignas(64) std::atomic<uint32_t> job_{0};
  alignas(64) std::atomic<uint32_t> inside_{0};
};

Pool* new_pool() { return new Pool; }  // never deleted: its threads go on until the program ends

Pool*& the_pool() {
  static Pool* pool = [] {
    // a forked process has none of our threads
    pthread_atfork(nullptr, nullptr, [] { the_pool() = new_pool(); });
    return new_pool();
  }();
  return pool;
}

}  // namespace

void share_work(int64_t workers, void (*body)(void* context, int64_t worker), void* context) {
  if (workers <= 1) return body(context, 0);
  the_pool()->run(workers, body, context);
}

}  // namespace dspark
