// The compaction of accept_tree and typical_accept.

#pragma once

#include "common/walk_arguments.h"

namespace dspark {

// Moves the accepted entries of every request in every cache.
void compact_caches(const WalkBatch& walks, int64_t batch, const Caches& caches);

}  // namespace dspark
