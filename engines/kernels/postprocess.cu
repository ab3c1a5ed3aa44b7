// Class scores at stride 4 to labels at the size of the frame, in one launch: bilinear, half-pixel centres, edges
// clamped. A label is 1 + argmax where the maximum ≥ threshold, otherwise 0. Of equal scores the first class wins.
//
// The arithmetic follows pipeline/postprocess.py step by step, without FMA, so that the labels are equal. The taps come
// from the host (plans.py). For each axis: lower[size] and upper[size] as int32, then float32 weights[size] of the
// upper taps.
//
// An interpolated score is never larger than its taps. A block first finds the classes that reach the threshold in any
// cell that its tile uses, and its threads interpolate only those. Most tiles have none.
//
// nvcc and NVRTC compile this file, and so does g++ with tests/unit/kernels_on_host/shim.h: it includes nothing.

namespace teso_postprocess {

constexpr int TILE_WIDTH = 32;  // plans.py has the same three values
constexpr int TILE_HEIGHT = 8;
constexpr int MAX_CLASSES = 255;  // a label is a byte
constexpr int THREADS = TILE_WIDTH * TILE_HEIGHT;
constexpr int WORDS = (MAX_CLASSES + 31) / 32;

#ifndef TESO_ON_HOST
__device__ inline float half_value(unsigned short bits) {
  float value;  // NVRTC does not always find cuda_fp16.h
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
#endif

__device__ inline float load(const float* place) { return *place; }
__device__ inline float load(const unsigned short* place) { return half_value(*place); }

__device__ inline float mixed(float lower, float upper, float weight) {
  return __fadd_rn(lower, __fmul_rn(__fsub_rn(upper, lower), weight));
}

// The taps of one axis, in the layout of the host.
struct Taps {
  const int* table;
  int size;

  __device__ int lower(int place) const { return table[place]; }
  __device__ int upper(int place) const { return table[size + place]; }
  __device__ float weight(int place) const { return __int_as_float(table[2 * size + place]); }
};

template <typename Number>
__device__ void run(const Number* scores, int classes, int score_height, int score_width, unsigned char* labels,
                    long long pitch_bytes, const Taps& rows, const Taps& columns, float threshold) {
  __shared__ unsigned reached[WORDS];  // one bit per class
  const int thread = threadIdx.y * TILE_WIDTH + threadIdx.x;
  const int first_row = blockIdx.y * TILE_HEIGHT, first_column = blockIdx.x * TILE_WIDTH;
  const int row = first_row + threadIdx.y, column = first_column + threadIdx.x;
  const long long plane = static_cast<long long>(score_height) * score_width;

  if (thread < WORDS) reached[thread] = 0;
  __syncthreads();
  const int top = rows.lower(first_row), left = columns.lower(first_column);
  const int tile_rows = rows.upper(min(first_row + TILE_HEIGHT, rows.size) - 1) - top + 1;
  const int tile_columns = columns.upper(min(first_column + TILE_WIDTH, columns.size) - 1) - left + 1;
  const int cells = tile_rows * tile_columns;
  for (long long index = thread; index < static_cast<long long>(classes) * cells; index += THREADS) {
    const int label = static_cast<int>(index / cells), cell = static_cast<int>(index % cells);
    const long long place =
        static_cast<long long>(top + cell / tile_columns) * score_width + left + cell % tile_columns;
    if (load(scores + label * plane + place) >= threshold) atomicOr(&reached[label / 32], 1u << (label % 32));
  }
  __syncthreads();
  if (row >= rows.size || column >= columns.size) return;

  const long long upper_row = static_cast<long long>(rows.lower(row)) * score_width;
  const long long lower_row = static_cast<long long>(rows.upper(row)) * score_width;
  const int left_column = columns.lower(column), right_column = columns.upper(column);
  const float along = columns.weight(column), down = rows.weight(row);
  float best = threshold;
  int label = 0;
  for (int word = 0; word < WORDS; ++word) {
    for (unsigned waiting = reached[word]; waiting != 0; waiting &= waiting - 1) {
      const int index = word * 32 + __ffs(static_cast<int>(waiting)) - 1;
      const Number* score = scores + index * plane;
      // Columns first, as on the CPU.
      const float above = mixed(load(score + upper_row + left_column), load(score + upper_row + right_column), along);
      const float below = mixed(load(score + lower_row + left_column), load(score + lower_row + right_column), along);
      const float value = mixed(above, below, down);
      if (label == 0 ? value >= best : value > best) {
        best = value;
        label = index + 1;
      }
    }
  }
  labels[row * pitch_bytes + column] = static_cast<unsigned char>(label);
}

}  // namespace teso_postprocess

// Grid: tiles along the columns, tiles along the rows, pictures. Block: (TILE_WIDTH, TILE_HEIGHT, 1).
#define TESO_POSTPROCESS_KERNEL(suffix, Number)                                                                     \
  extern "C" __global__ void teso_postprocess_##suffix(                                                             \
      const Number* scores, int classes, int score_height, int score_width, unsigned char* labels,                  \
      long long pitch_bytes, long long picture_stride_bytes, const int* row_taps, int height,                       \
      const int* column_taps, int width, float threshold) {                                                         \
    teso_postprocess::run(scores + static_cast<long long>(blockIdx.z) * classes * score_height * score_width,       \
                          classes, score_height, score_width, labels + blockIdx.z * picture_stride_bytes,           \
                          pitch_bytes, teso_postprocess::Taps{row_taps, height},                                    \
                          teso_postprocess::Taps{column_taps, width}, threshold);                                   \
  }

TESO_POSTPROCESS_KERNEL(float32, float)
TESO_POSTPROCESS_KERNEL(float16, unsigned short)
