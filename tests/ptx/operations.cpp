// How an instruction is found from its name.

#include "operations.h"

namespace ptx {

void decode(Instruction& i) {
  const std::string& name = i.name();
  if (name == "bra") {
    i.flow = Flow::kBranch;
  } else if (name == "ret" || name == "exit") {
    i.flow = Flow::kExit;
  } else if ((name == "bar" || name == "barrier") && i.part(1) != "warp") {
    if (i.r.size() != 1 || !i.has("sync")) unknown(i);
    i.flow = Flow::kBarrier;
  } else {
    if (i.has("sync")) i.flow = Flow::kWarpSync;
    for (const auto family : {&arithmetic, &comparison, &conversion, &memory_access,
                              &exchange_of_lanes, &matrix_product}) {
      if (i.run == nullptr) i.run = family(i);
    }
    if (i.run == nullptr) unknown(i);
  }
}

}  // namespace ptx
