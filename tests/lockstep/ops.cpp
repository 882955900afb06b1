// The ops of csrc/common as torch ops `dspark_lockstep::*`, run by the lanes of a Machine. Every
// request is run with its own order of the lanes, in scratch memory full of rubbish.

#include <torch/csrc/stable/library.h>

#include "common/advance_arguments.h"
#include "common/best_slots_arguments.h"
#include "common/chain_arguments.h"
#include "common/compact.h"
#include "common/glm_tree_arguments.h"
#include "common/lookup_arguments.h"
#include "common/seen_arguments.h"
#include "common/typical_arguments.h"
#include "group.h"

namespace dspark {
namespace {

using lockstep::Group;
using lockstep::Machine;

constexpr int64_t kUnit = 4;  // of the slices of a row: several in rows as short as in tests

int64_t lanes = 32, team_size = 8;
uint64_t seed = 0;

void configure(int64_t new_lanes, int64_t new_team_size, int64_t new_seed) {
  lanes = new_lanes, team_size = new_team_size, seed = static_cast<uint64_t>(new_seed);
}

// Memory as a kernel finds it, with a margin that must not change.
class Rubbish {
 public:
  explicit Rubbish(int64_t bytes) : words_(bytes / 8 + 2 + kMargin, kRubbish) {}
  template <typename T = char>
  T* data() {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(words_.data() + 1) & ~uintptr_t{15});
  }
  bool intact() const {
    for (size_t i = words_.size() - kMargin + 1; i < words_.size(); ++i) {
      if (words_[i] != kRubbish) return false;
    }
    return true;
  }

 private:
  static constexpr uint64_t kRubbish = 0xFBADF00DFBADF00D;
  static constexpr int64_t kMargin = 64;
  std::vector<uint64_t> words_;
};

// Runs body(group, request) for every request, on all lanes.
template <typename F>
void run(int64_t batch, const F& body) {
  for (int64_t request = 0; request < batch; ++request) {
    Machine machine(static_cast<int>(lanes), static_cast<int>(team_size), ++seed);
    const std::string wrong = machine.run([&](int lane) {
      Group group(machine, lane);
      body(group, request);
    });
    if (!wrong.empty()) throw std::runtime_error("lockstep: " + wrong);
  }
}

void check_intact(const Rubbish& memory) {
  if (!memory.intact()) throw std::runtime_error("lockstep: a write beyond the scratch memory");
}

template <typename F>
void with_type(DType dtype, const F& f) {
  dtype == DType::kBf16 ? f(Bf16{}) : dtype == DType::kFp16 ? f(Fp16{}) : f(0.0f);
}

TreeTensors glm_tree(Tensor ids, Tensor keys, Tensor logsumexp, Tensor gate, Tensor root,
                     Tensor table_in, Tensor table_out, Tensor mix, Tensor depth_scale,
                     std::optional<Tensor> calibration, std::optional<Tensor> temperature,
                     std::optional<Tensor> paths, std::optional<Tensor> path_scores,
                     int64_t num_nodes, double min_score) {
  const GlmTreeArguments arguments(ids, keys, logsumexp, gate, root, table_in, table_out, mix,
                                   depth_scale, calibration, temperature, paths, path_scores,
                                   num_nodes, min_score, "glm_tree");
  GlmTree view = arguments.view;
  view.shape.matrix_unit = view.dtype != DType::kFp32 && view.shape.rank % 16 == 0;
  view.shape.levels = seed % 2 == 0 ? std::max(view.shape.heads, 1) : 1;
  view.shape.own_mix = view.shape.matrix_unit && seed / 2 % 2 == 0;
  view.layout = GlmLayout(view.shape);
  Rubbish workspace(view.layout.bytes()), scratch(sizeof(TreeScratch));
  with_type(view.dtype, [&](auto type) {
    run(arguments.batch, [&](Group& group, int64_t request) {
      glm_tree_request<Group, decltype(type)>(group, view, request, workspace.data(),
                                              *scratch.data<TreeScratch>());
    });
  });
  check_intact(workspace);
  return arguments.outputs();
}

std::tuple<Tensor, Tensor> context_lookup(Tensor history, Tensor lengths, int64_t max_ngram,
                                          int64_t min_ngram, int64_t num_paths,
                                          int64_t path_length) {
  const LookupArguments arguments(history, lengths, max_ngram, min_ngram, num_paths, path_length,
                                  "context_lookup");
  Rubbish matches(8 * arguments.view.capacity), scratch(sizeof(LookupScratch));
  run(arguments.batch, [&](Group& group, int64_t request) {
    context_lookup_request(group, arguments.view, request, *scratch.data<LookupScratch>(),
                           matches.data<int64_t>());
  });
  check_intact(matches);
  return arguments.outputs();
}

// As compact_on_device does it, in three slices.
template <bool kWalk>
void compact(const Walks& walks, const Caches& caches) {
  constexpr int kSlices = 3;
  Rubbish list(sizeof(MoveList));
  MoveList& moves = *list.data<MoveList>();
  std::vector<CacheTable> tables = cache_tables(caches.layouts);
  if (kWalk && tables.empty()) tables.push_back(CacheTable{});
  for (const CacheTable& table : tables) {
    for (int slice = 0; slice < kSlices; ++slice) {
      run(walks.batch, [&](Group& group, int64_t request) {
        const int64_t seqlen = caches.slots.seqlens[request];
        const int count = kWalk ? find_path(group, walks.view, request, moves)
                                : read_path(group, walks.view, request, moves);
        if (table.count > 0) {
          const int n = list_moves(group, caches.slots, table, request, seqlen, count, moves);
          if (table.packet_bytes == 16) move_entries<16>(group, table, moves, n, slice, kSlices);
          if (table.packet_bytes == 4) move_entries<4>(group, table, moves, n, slice, kSlices);
          if (table.packet_bytes == 1) move_entries<1>(group, table, moves, n, slice, kSlices);
        }
        if (kWalk && slice == 0) write_path(group, walks.view, request, count, moves);
      });
    }
  }
  check_intact(list);
}

WalkTensors accept_tree(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens,
                        std::vector<Tensor> caches, Tensor cache_seqlens,
                        std::optional<Tensor> block_table, int64_t max_depth) {
  const Walks walks(tokens, parents, num_nodes, target_tokens, max_depth, "accept_tree");
  const Caches moved(walks.batch, caches, cache_seqlens, block_table, "accept_tree");
  compact<true>(walks, moved);
  return walks.tensors();
}

WalkTensors typical_accept(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens,
                           Tensor logits, std::optional<Tensor> temperature, double epsilon,
                           double delta, std::vector<Tensor> caches, Tensor cache_seqlens,
                           std::optional<Tensor> block_table, int64_t max_depth) {
  const Walks walks(tokens, parents, num_nodes, target_tokens, max_depth, "typical_accept");
  const Caches moved(walks.batch, caches, cache_seqlens, block_table, "typical_accept");
  TypicalArguments arguments(walks, logits, temperature, epsilon, delta, "typical_accept");
  const SlicedTypical view = arguments.sliced(walks, kUnit);
  with_type(view.typical.dtype, [&](auto type) {
    using T = decltype(type);
    for (int slice = 0; slice < view.slices.count; ++slice) {
      run(walks.batch * walks.nodes, [&](Group& group, int64_t row) {
        const int node = static_cast<int>(row % walks.nodes);
        typical_stats<Group, T>(group, view, row / walks.nodes, node, slice);
      });
    }
    Rubbish scratch(sizeof(TypicalScratch)), path(4 * kMaxNodes);
    Rubbish stats(sizeof(RowStats) * kMaxNodes);
    run(walks.batch, [&](Group& group, int64_t request) {
      typical_finish<Group, T>(group, view, request, *scratch.data<TypicalScratch>(),
                               stats.data<RowStats>(), path.data<int32_t>());
    });
    check_intact(path), check_intact(stats);
  });
  compact<false>(walks, moved);
  return walks.tensors();
}

std::tuple<Tensor, Tensor> chain_reject(Tensor draft_tokens, Tensor draft_logits,
                                        Tensor target_logits, Tensor temperature, Tensor seeds,
                                        Tensor position) {
  ChainArguments arguments(draft_tokens, draft_logits, target_logits, temperature, seeds, position,
                           "chain_reject");
  const SlicedChain view = arguments.sliced(kUnit);
  const int64_t rows = 2 * view.chain.length + 1, batch = arguments.batch;
  with_type(view.chain.dtype, [&](auto type) {
    using T = decltype(type);
    Rubbish scratch(sizeof(ChainScratch));
    for (int slice = 0; slice < view.slices.count; ++slice) {
      run(batch * rows, [&](Group& group, int64_t row) {
        chain_stats<Group, T>(group, view, row / rows, static_cast<int>(row % rows), slice);
      });
    }
    for (int slice = 0; slice < view.slices.count; ++slice) {
      run(batch, [&](Group& group, int64_t request) {
        chain_draw<Group, T>(group, view, request, slice, *scratch.data<ChainScratch>());
      });
    }
    run(batch,
        [&](Group& group, int64_t request) { chain_finish<Group, T>(group, view, request); });
  });
  return arguments.outputs();
}

Tensor advance_step(Tensor tokens, Tensor num_tokens, Tensor node, std::optional<Tensor> rows,
                    std::vector<Tensor> hidden, Tensor stop, Tensor limit, Tensor history,
                    Tensor lengths, Tensor cache_seqlens, Tensor root, Tensor done,
                    std::vector<Tensor> kept) {
  const AdvanceArguments arguments(tokens, num_tokens, node, rows, hidden, stop, limit, history,
                                   lengths, cache_seqlens, root, done, kept, "advance_step");
  run(arguments.batch,
      [&](Group& group, int64_t request) { advance_request(group, arguments.view, request); });
  return arguments.output();
}

SlotTensors best_slots(Tensor scores, Tensor num_nodes, Tensor lengths, Tensor limit, Tensor done,
                       int64_t nodes, int64_t total) {
  const BestSlotsArguments arguments(scores, num_nodes, lengths, limit, done, nodes, total,
                                     "best_slots");
  Rubbish scratch(sizeof(SelectScratch));
  run(1, [&](Group& group, int64_t) {
    choose_slots(group, arguments.view, *scratch.data<SelectScratch>());
  });
  check_intact(scratch);
  return arguments.outputs();
}

Tensor seen_tokens(Tensor history, Tensor lengths, int64_t vocab_size, std::optional<Tensor> tokens,
                   std::optional<Tensor> ancestors, std::optional<Tensor> slots) {
  const SeenArguments arguments(history, lengths, vocab_size, tokens, ancestors, slots,
                                "seen_tokens");
  constexpr int kWords = 2;  // of a block: several in vocabularies as small as in tests
  const int blocks = (arguments.view.words + kWords - 1) / kWords;
  Rubbish scratch(2 * kWords * sizeof(uint32_t));
  run(arguments.rows * blocks, [&](Group& group, int64_t block) {
    const int first = static_cast<int>(block % blocks) * kWords;
    auto* bits = scratch.data<uint32_t>();
    seen_tokens_row(group, arguments.view, block / blocks, first, kWords, bits);
  });
  check_intact(scratch);
  return arguments.output();
}

// Negative controls: a group that forgets a barrier, and one whose lanes part.
Tensor broken(Tensor values, int64_t how) {
  auto* data = values.mutable_data_ptr<int32_t>();
  run(1, [&](Group& group, int64_t) {
    data[group.lane()] = group.lane();
    if (how != 0) group.sync();
    if (how == 1) data[group.lane() / 2] = 0;
    if (how == 2 && group.lane() < 3) group.sync();
    if (how == 3) group.lane() < 3 ? group.sync() : static_cast<void>(group.min(0));
    const int next = how == 0 ? data[(group.lane() + 1) % group.size()] : 0;
    if (next == -1) group.sync();
  });
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY(dspark_lockstep, m) {
  m.def("configure(int lanes, int team_size, int seed) -> ()");
  m.def("broken(Tensor(a!) values, int how) -> Tensor");
  m.def(
      "glm_tree(Tensor ids, Tensor keys, Tensor logsumexp, Tensor gate, Tensor root, Tensor "
      "table_in, Tensor table_out, Tensor mix, Tensor depth_scale, Tensor? calibration, Tensor? "
      "temperature, Tensor? paths, Tensor? path_scores, int num_nodes, float min_score) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "context_lookup(Tensor history, Tensor lengths, int max_ngram, int min_ngram, int num_paths, "
      "int path_length) -> (Tensor, Tensor)");
  m.def(
      "accept_tree(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens, "
      "Tensor(a!)[] caches, Tensor cache_seqlens, Tensor? block_table, int max_depth) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "typical_accept(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens, "
      "Tensor logits, Tensor? temperature, float epsilon, float delta, Tensor(a!)[] caches, "
      "Tensor cache_seqlens, Tensor? block_table, int max_depth) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "advance_step(Tensor tokens, Tensor num_tokens, Tensor node, Tensor? rows, Tensor[] hidden, "
      "Tensor stop, Tensor limit, Tensor(a!) history, Tensor(b!) lengths, Tensor(c!) "
      "cache_seqlens, Tensor(d!) root, Tensor(e!) done, Tensor(f!)[] kept) -> Tensor");
  m.def(
      "best_slots(Tensor scores, Tensor num_nodes, Tensor lengths, Tensor limit, Tensor done, "
      "int nodes, int total) -> (Tensor, Tensor, Tensor)");
  m.def(
      "seen_tokens(Tensor history, Tensor lengths, int vocab_size, Tensor? tokens, "
      "Tensor? ancestors, Tensor? slots) -> Tensor");
  m.def(
      "chain_reject(Tensor draft_tokens, Tensor draft_logits, Tensor target_logits, Tensor "
      "temperature, Tensor seed, Tensor position) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dspark_lockstep, CompositeExplicitAutograd, m) {
  m.impl("configure", TORCH_BOX(&configure));
}

STABLE_TORCH_LIBRARY_IMPL(dspark_lockstep, CPU, m) {
  m.impl("broken", TORCH_BOX(&broken));
  m.impl("glm_tree", TORCH_BOX(&glm_tree));
  m.impl("context_lookup", TORCH_BOX(&context_lookup));
  m.impl("accept_tree", TORCH_BOX(&accept_tree));
  m.impl("typical_accept", TORCH_BOX(&typical_accept));
  m.impl("advance_step", TORCH_BOX(&advance_step));
  m.impl("best_slots", TORCH_BOX(&best_slots));
  m.impl("seen_tokens", TORCH_BOX(&seen_tokens));
  m.impl("chain_reject", TORCH_BOX(&chain_reject));
}

}  // namespace dspark
