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
// A thread which waits for work yields its core. If that takes longer than this, somebody wanted
// it: the thread sleeps at once, this and the next so many times. One that is woken has a claim to
// a core; one that waits in a loop takes turns of milliseconds, with other programs or torch's own
// threads.
constexpr microseconds kYielded{30};
constexpr int kSleeps = 100;

// Whether threads may wait in loops at all: what OpenMP is told.
const bool may_spin = [] {
  const char* policy = std::getenv("OMP_WAIT_POLICY");
  return policy == nullptr || strcasecmp(policy, "passive") != 0;
}();

inline void relax() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

enum class Wait { kReady, kLate, kCrowded };

// Waits in a loop until ready(value) holds, or it is late, or with kYield the core is wanted.
template <bool kYield, typename F>
Wait spin_until(const std::atomic<uint32_t>& value, microseconds patience, const F& ready) {
  if (ready(value.load())) return Wait::kReady;
  if (!may_spin) return Wait::kLate;
  for (auto now = Clock::now(), end = now + patience; now < end;) {
    for (int i = 0; i < 16; ++i) {
      relax();
      if (ready(value.load())) return Wait::kReady;
    }
    const auto before = now;
    if constexpr (kYield) sched_yield();
    now = Clock::now();
    if (kYield && now - before > kYielded) return Wait::kCrowded;
  }
  return Wait::kLate;
}

template <typename F>
void sleep_until(const std::atomic<uint32_t>& value, const F& ready) {
  for (uint32_t now; !ready(now = value.load());) value.wait(now);
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
    const auto empty = [](uint32_t inside) { return inside == 0; };
    if (spin_until<false>(inside_, kForOthers, empty) != Wait::kReady) sleep_until(inside_, empty);
  }

 private:
  // Starts threads until there are so many; whether there is one at least.
  bool has_threads(int64_t count) {
    if (threads_ >= count) return true;
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
    int sleeps = 0;
    for (uint32_t last = 0;;) {
      const auto is_new = [&](uint32_t job) { return job != last && job % 2 == 1; };
      const Wait wait = sleeps > 0 ? Wait::kLate : spin_until<true>(job_, kForWork, is_new);
      sleeps = wait == Wait::kCrowded ? kSleeps : sleeps > 0 ? sleeps - 1 : 0;
      if (wait != Wait::kReady) sleep_until(job_, is_new);
      last = job_.load();
      if (last % 2 == 0) continue;  // over by now
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
