// The frame of the operators that need the top_k hardest of every anchor: products, selection, a row epilogue.
//
// A tile of S at a time is formed in cache and at once reduced to the top_k largest of each row. Where the call knows
// them from another one, nothing is formed and nothing is selected.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "blas.hpp"
#include "operators.hpp"
#include "parallel.hpp"

namespace amcl {

// A tile of S (rows × kTileBytes) stays in the level-2 cache between the product and the selection.
constexpr int64_t kTileBytes = 8192;

// Many rows spread the cost of packing the candidates for a product (with MoCo's long queue it exceeds the product at
// 32 rows), few leave work for every thread. By the shape alone: the bits of a product may depend on its shape.
inline int64_t rows_per_block(int64_t heads, int64_t anchors) { return heads * anchors >= 512 ? 128 : 32; }

template <class T>
struct SelectionMemory {
  T *tile, *similarities, *floors, *scratch_similarities;
  int32_t *chosen, *scratch_chosen;
  int64_t* counts;
  char* finite;

  SelectionMemory(Arena& arena, int64_t rows, int64_t tile_width, int64_t top_k)
      : tile(arena.take<T>(rows * tile_width)),
        similarities(arena.take<T>(rows * top_k)),
        floors(arena.take<T>(rows)),
        scratch_similarities(arena.take<T>(top_k + tile_width + kPadding)),
        chosen(arena.take<int32_t>(rows * top_k)),
        scratch_chosen(arena.take<int32_t>(top_k + tile_width + kPadding)),
        counts(arena.take<int64_t>(rows)),
        finite(arena.take<char>(rows)) {}
};

// Leaves the similarities and columns of `height` rows of a head, those from `first` on, in `memory`.
template <class T>
void select_hardest(const Contrast<T>& call, int64_t head, int64_t first, int64_t height, int64_t tile_width,
                    const SelectionMemory<T>& memory, SelectionScratch<T>* scratch) {
  const T infinity = std::numeric_limits<T>::infinity();
  const Kernels<T>& kernel = kernels<T>();
  const int64_t top_k = call.top_k;
  std::fill_n(memory.floors, height, -infinity);
  std::fill_n(memory.counts, height, 0);
  std::fill_n(memory.finite, height, 1);
  for (int64_t column = 0; column < call.candidates; column += tile_width) {
    const int64_t width = std::min(tile_width, call.candidates - column);
    multiply<T>(height, width, call.width, T(1), {call.a.row(head, first), call.a.row_stride, false},
                {call.b.row(head, column), call.b.row_stride, true}, false, memory.tile, tile_width);
    for (int64_t i = 0; i < height; ++i) {
      T* similarity = memory.tile + i * tile_width;
      for (int64_t j = 0; j < call.skips; ++j) {
        const int64_t skipped = call.skip[(first + i) * call.skips + j] - column;
        if (skipped >= 0 && skipped < width) similarity[skipped] = -infinity;
      }
      Selection<T> best{memory.similarities + i * top_k, memory.chosen + i * top_k, memory.counts[i], memory.floors[i],
                        memory.finite[i] != 0};
      kernel.select(similarity, width, static_cast<int32_t>(column), top_k, &best, scratch);
      memory.counts[i] = best.count;
      memory.floors[i] = best.floor;
      memory.finite[i] = best.finite;
    }
  }
  for (int64_t i = 0; i < height; ++i) {
    if (memory.finite[i] && memory.counts[i] == top_k) continue;
    // No order, no selection: NaN takes the place of every similarity, so the loss shows it.
    std::fill_n(memory.similarities + i * top_k, top_k, std::numeric_limits<T>::quiet_NaN());
    std::fill_n(memory.chosen + i * top_k, top_k, 0);
  }
}

// `row(head, anchor, similarities, columns, work, sums)` is called once for each anchor, from any thread. `work` holds
// work_elements, aligned. Returns the sums that the rows added to.
template <class T, class Row>
Sums for_hardest(const Contrast<T>& call, int64_t work_elements, const Row& row) {
  const int64_t top_k = call.top_k;
  const int64_t block = std::min(rows_per_block(call.heads, call.anchors), call.anchors);
  const int64_t blocks = (call.anchors + block - 1) / block;
  const int64_t tile_width = std::min<int64_t>(kTileBytes / static_cast<int64_t>(sizeof(T)), call.candidates);

  Arena measure;
  measure.take<T>(work_elements);
  if (!call.similarities) SelectionMemory<T>(measure, block, tile_width, top_k);
  const Workspace workspace(call.threads, measure.used());
  std::vector<Sums> sums(static_cast<std::size_t>(call.heads * blocks));

#pragma omp parallel num_threads(call.threads)
  {
    const BlasOnThisThread alone;
    Arena arena(workspace.of_thread());
    T* const work = arena.take<T>(work_elements);
    const SelectionMemory<T> memory(arena, block, tile_width, top_k);
    SelectionScratch<T> scratch{memory.scratch_similarities, memory.scratch_chosen, std::numeric_limits<T>::infinity()};
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < call.heads * blocks; ++item) {
      const int64_t head = item / blocks, first = item % blocks * block;
      const int64_t height = std::min(block, call.anchors - first);
      Sums& sum = sums[static_cast<std::size_t>(item)];
      const T* similarities = memory.similarities;
      const int32_t* columns = memory.chosen;
      if (call.similarities) {
        similarities = call.similarities + (head * call.anchors + first) * top_k;
        columns = call.columns + (head * call.anchors + first) * top_k;
      } else {
        select_hardest(call, head, first, height, tile_width, memory, &scratch);
      }
      for (int64_t i = 0; i < height; ++i)
        row(head, first + i, similarities + i * top_k, columns + i * top_k, work, &sum);
    }
  }
  Sums result;
  for (const Sums& part : sums) result.add(part);
  return result;
}

}  // namespace amcl
