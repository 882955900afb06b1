// The threads which share a kernel's work with the thread that calls it.

#pragma once

#include <cstdint>

namespace dspark {

// Calls body(context, worker) here with worker 0, and with 1 to workers - 1 in those of our threads
// that come before this call of it is done; returns when all calls are. The body is to take tasks
// until there are none, and must not throw.
//
// Where an OpenMP region ends, it waits for all of its threads, even one which has lost its core to
// another program and has no part in the work: milliseconds, some hundred times per pass.
void share_work(int64_t workers, void (*body)(void* context, int64_t worker), void* context);

}  // namespace dspark
