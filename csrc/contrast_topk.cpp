// `contrast` over the top_k hardest negatives, forward and backward.
//
// Only S = anchors · candidatesᵀ is ever formed, tile by tile in cache, and at once reduced to the top_k largest of
// each row. R, the temperatures and all gradients are then needed for top_k columns a row and are gathered, which for
// far fewer than all candidates costs a few percent of the dense products. The candidates' gradients go by a list
// sorted by (column, row), so every sum has one order: no atomics, and the same bits for any number of threads.
#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "blas.hpp"
#include "operators.hpp"
#include "parallel.hpp"

namespace amcl {
namespace {

// A tile of S (rows × kTileBytes) stays in the level-2 cache between the product and the selection.
constexpr int64_t kTileBytes = 8192;

// Many rows spread the cost of packing the candidates for a product (with MoCo's long queue it exceeds the product at
// 32 rows), few leave work for every thread. By the shape alone: the bits of a product may depend on its shape.
int64_t rows_per_block(int64_t heads, int64_t anchors) { return heads * anchors >= 512 ? 128 : 32; }

template <class T>
struct ForwardMemory {
  T *tile, *similarities, *floors, *r, *work, *slope_s, *slope_r, *scratch_similarities;
  int32_t *chosen, *scratch_chosen;
  int64_t* counts;
  char* finite;

  ForwardMemory(Arena& arena, int64_t rows, int64_t tile_width, int64_t top_k)
      : tile(arena.take<T>(rows * tile_width)),
        similarities(arena.take<T>(rows * top_k)),
        floors(arena.take<T>(rows)),
        r(arena.take<T>(top_k)),
        work(arena.take<T>(3 * top_k)),
        slope_s(arena.take<T>(top_k)),
        slope_r(arena.take<T>(top_k)),
        scratch_similarities(arena.take<T>(top_k + tile_width + kPadding)),
        chosen(arena.take<int32_t>(rows * top_k)),
        scratch_chosen(arena.take<int32_t>(top_k + tile_width + kPadding)),
        counts(arena.take<int64_t>(rows)),
        finite(arena.take<char>(rows)) {}
};

}  // namespace

template <class T>
Sums contrast_topk_forward(const Contrast<T>& call, T* rows, int32_t* chosen, T* slope_s, T* slope_r) {
  const int64_t top_k = call.top_k;
  const int64_t block = std::min(rows_per_block(call.heads, call.anchors), call.anchors);
  const int64_t blocks = (call.anchors + block - 1) / block;
  const int64_t tile_width = std::min<int64_t>(kTileBytes / static_cast<int64_t>(sizeof(T)), call.candidates);
  const T infinity = std::numeric_limits<T>::infinity();
  const Kernels<T>& kernel = kernels<T>();

  Arena measure;
  ForwardMemory<T>(measure, block, tile_width, top_k);
  const Workspace workspace(call.threads, measure.used());
  std::vector<Sums> sums(static_cast<std::size_t>(call.heads * blocks));

#pragma omp parallel num_threads(call.threads)
  {
    const BlasOnThisThread alone;
    Arena arena(workspace.of_thread());
    const ForwardMemory<T> memory(arena, block, tile_width, top_k);
    SelectionScratch<T> scratch{memory.scratch_similarities, memory.scratch_chosen, infinity};
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < call.heads * blocks; ++item) {
      const int64_t head = item / blocks, first = item % blocks * block;
      const int64_t height = std::min(block, call.anchors - first);
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
          Selection<T> best{memory.similarities + i * top_k, memory.chosen + i * top_k, memory.counts[i],
                            memory.floors[i], memory.finite[i] != 0};
          kernel.select(similarity, width, static_cast<int32_t>(column), top_k, &best, &scratch);
          memory.counts[i] = best.count;
          memory.floors[i] = best.floor;
          memory.finite[i] = best.finite;
        }
      }

      Sums& total = sums[static_cast<std::size_t>(item)];
      for (int64_t i = 0; i < height; ++i) {
        const int64_t row = head * call.anchors + first + i;
        T* similarity = memory.similarities + i * top_k;
        int32_t* own = memory.chosen + i * top_k;
        if (!memory.finite[i] || memory.counts[i] < top_k) {
          // No order, no selection: NaN takes the place of every similarity, so the loss shows it.
          std::fill_n(similarity, top_k, std::numeric_limits<T>::quiet_NaN());
          std::fill_n(own, top_k, 0);
        }
        if (call.phi_a) {
          kernel.gather_dot(memory.r, top_k, own, call.phi_a.row(head, first + i), call.phi_b.row(head, 0),
                            call.phi_b.row_stride, call.phi_width);
        }
        rows[row] = kernel.topk_row(call.form, top_k, similarity, call.phi_a ? memory.r : nullptr, call.temperature,
                                    slope_s ? memory.slope_s : nullptr, slope_s ? memory.slope_r : nullptr,
                                    memory.work, &total);
        if (slope_s) {
          std::copy_n(own, top_k, chosen + row * top_k);
          std::copy_n(memory.slope_s, top_k, slope_s + row * top_k);
          if (slope_r) std::copy_n(memory.slope_r, top_k, slope_r + row * top_k);
        }
      }
    }
  }
  Sums result;
  for (const Sums& part : sums) result.add(part);
  return result;
}

namespace {

// The selected (row, column) pairs of one head, ordered by column and then by row, with their weights.
template <class T>
struct ByColumn {
  std::unique_ptr<int64_t[]> begin;  // (candidates + 1): where each column's entries start
  std::unique_ptr<int32_t[]> row;
  std::unique_ptr<T[]> slope_s, slope_r;  // times the gradient of the row; null when not needed
};

// Counting sort over fixed chunks of rows, so that it runs on many threads and gives one order.
template <class T>
class ColumnSort {
 public:
  ColumnSort(const Contrast<T>& call, bool with_slope_s, bool with_slope_r)
      : call_(call), chunk_rows_((call.anchors + kChunks - 1) / kChunks) {
    // Arrays by `new` and not vectors: they are written whole, so filling them with zeros first would be waste.
    const auto entries = static_cast<std::size_t>(call.anchors * call.top_k);
    offsets_.reset(new int64_t[static_cast<std::size_t>(kChunks * call.candidates)]);
    sorted_.begin.reset(new int64_t[static_cast<std::size_t>(call.candidates + 1)]);
    sorted_.row.reset(new int32_t[entries]);
    if (with_slope_s) sorted_.slope_s.reset(new T[entries]);
    if (with_slope_r) sorted_.slope_r.reset(new T[entries]);
  }

  // To be called by all threads of a parallel region; ends with a barrier.
  void sort(const T* gradient, const int32_t* chosen, const T* slope_s, const T* slope_r) {
    const int64_t top_k = call_.top_k, candidates = call_.candidates;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
      int64_t* counts = offsets_.get() + chunk * candidates;
      std::fill_n(counts, candidates, 0);
      for (int64_t e = first_row(chunk) * top_k; e < first_row(chunk + 1) * top_k; ++e) ++counts[chosen[e]];
    }
#pragma omp single
    {
      int64_t position = 0;
      for (int64_t column = 0; column < candidates; ++column) {
        sorted_.begin[column] = position;
        for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
          int64_t& offset = offsets_[chunk * candidates + column];
          const int64_t count = offset;
          offset = position;
          position += count;
        }
      }
      sorted_.begin[candidates] = position;
    }
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
      int64_t* offsets = offsets_.get() + chunk * candidates;
      for (int64_t row = first_row(chunk); row < first_row(chunk + 1); ++row) {
        for (int64_t e = row * top_k; e < (row + 1) * top_k; ++e) {
          const int64_t at = offsets[chosen[e]]++;
          sorted_.row[at] = static_cast<int32_t>(row);
          if (sorted_.slope_s) sorted_.slope_s[at] = gradient[row] * slope_s[e];
          if (sorted_.slope_r) sorted_.slope_r[at] = gradient[row] * slope_r[e];
        }
      }
    }
  }

  const ByColumn<T>& sorted() const { return sorted_; }

 private:
  static constexpr int64_t kChunks = 8;
  int64_t first_row(int64_t chunk) const { return std::min(chunk * chunk_rows_, call_.anchors); }

  const Contrast<T>& call_;
  int64_t chunk_rows_;
  std::unique_ptr<int64_t[]> offsets_;
  ByColumn<T> sorted_;
};

}  // namespace

template <class T>
void contrast_topk_backward(const Contrast<T>& call, const T* gradient, const int32_t* chosen, const T* slope_s,
                            const T* slope_r, const Gradients<T>& gradients) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t top_k = call.top_k;
  const bool to_candidates = gradients.y || gradients.phi_y;
  std::vector<double> offset_terms(gradients.offset ? static_cast<std::size_t>(call.heads * call.anchors) : 0);
  std::optional<ColumnSort<T>> by_column;
  if (to_candidates)
    by_column.emplace(call, static_cast<bool>(gradients.y), static_cast<bool>(gradients.phi_y));

#pragma omp parallel num_threads(call.threads)
  for (int64_t head = 0; head < call.heads; ++head) {
    const int64_t start = head * call.anchors;
    if (gradients.x || gradients.phi_x || gradients.offset) {
#pragma omp for schedule(dynamic, 16) nowait
      for (int64_t i = 0; i < call.anchors; ++i) {
        const int64_t row = start + i;
        const int32_t* own = chosen + row * top_k;
        if (gradients.x)
          kernel.gather_sum(gradients.x.row(head, i), gradient[row], top_k, own, slope_s + row * top_k,
                            call.b.row(head, 0), call.b.row_stride, call.width);
        if (gradients.phi_x)
          kernel.gather_sum(gradients.phi_x.row(head, i), gradient[row], top_k, own, slope_r + row * top_k,
                            call.phi_b.row(head, 0), call.phi_b.row_stride, call.phi_width);
        if (gradients.offset) {
          double sum = 0;
          for (int64_t e = row * top_k; e < (row + 1) * top_k; ++e) sum += static_cast<double>(slope_r[e]);
          offset_terms[static_cast<std::size_t>(row)] = -sum * static_cast<double>(gradient[row]);
        }
      }
    }
    if (to_candidates) {
      by_column->sort(gradient + start, chosen + start * top_k, slope_s + start * top_k,
                      slope_r ? slope_r + start * top_k : nullptr);
      const ByColumn<T>& sorted = by_column->sorted();
#pragma omp for schedule(dynamic, 16)
      for (int64_t j = 0; j < call.candidates; ++j) {
        const int64_t begin = sorted.begin[j], count = sorted.begin[j + 1] - begin;
        const int32_t* rows = sorted.row.get() + begin;
        if (gradients.y)
          kernel.gather_sum(gradients.y.row(head, j), T(1), count, rows, sorted.slope_s.get() + begin,
                            call.a.row(head, 0), call.a.row_stride, call.width);
        if (gradients.phi_y)
          kernel.gather_sum(gradients.phi_y.row(head, j), T(1), count, rows, sorted.slope_r.get() + begin,
                            call.phi_a.row(head, 0), call.phi_a.row_stride, call.phi_width);
      }
    }
  }
  for (int64_t head = 0; gradients.offset && head < call.heads; ++head) {
    const auto terms = offset_terms.begin() + head * call.anchors;
    gradients.offset[head] = std::accumulate(terms, terms + call.anchors, 0.0);
  }
}

template Sums contrast_topk_forward(const Contrast<float>&, float*, int32_t*, float*, float*);
template Sums contrast_topk_forward(const Contrast<double>&, double*, int32_t*, double*, double*);
template void contrast_topk_backward(const Contrast<float>&, const float*, const int32_t*, const float*, const float*,
                                     const Gradients<float>&);
template void contrast_topk_backward(const Contrast<double>&, const double*, const int32_t*, const double*,
                                     const double*, const Gradients<double>&);

}  // namespace amcl
