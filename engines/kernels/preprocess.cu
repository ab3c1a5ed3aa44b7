// Decoded pictures to the encoder's input: colours, resize and normalisation in one launch.
//
// The resize equals Pillow's BILINEAR bit for bit, because the CPU path uses Pillow: a triangle filter with fixed-point
// weights along one axis, then along the other, rounded to 8 bits after each. Pillow chooses the first axis by the
// sizes; the host (plans.py) makes the same choice and computes the weights. For each axis:
//
//     starts[size]  counts[size]  weights[taps][size]        int32, one after the other
//
// A block makes a tile of the output. It reads its part of the source in strips: each strip is resized along the first
// axis into shared memory, then added to the sums along the second axis, which each thread keeps for its own pixel. The
// size of shared memory is therefore the same for every scale. Sums of integers do not depend on their order.
//
// nvcc and NVRTC compile this file, and so does g++ with tests/unit/kernels_on_host/shim.h: it includes nothing, and
// floats are multiplied and added by intrinsics that no compiler contracts to an FMA.

namespace teso_preprocess {

constexpr int TILE_WIDTH = 32;   // plans.py has the same values
constexpr int TILE_HEIGHT = 8;
constexpr int STRIP_BYTES = 6144;
constexpr int WEIGHT_BITS = 22;  // as in Pillow for 8-bit pictures
constexpr int COLOUR_BITS = 16;

#ifndef TESO_ON_HOST
__device__ inline unsigned short half_bits(float value) {
  unsigned short bits;  // NVRTC does not always find cuda_fp16.h
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif

__device__ inline void store(float* place, float value) { *place = value; }
__device__ inline void store(unsigned short* place, float value) { *place = half_bits(value); }

__device__ inline int clipped(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

// One picture of interleaved 8-bit RGB.
struct Rgb {
  const unsigned char* picture;
  long long pitch_bytes;

  __device__ void read(int row, int column, int* rgb) const {
    const unsigned char* pixel = picture + row * pitch_bytes + 3LL * column;
    for (int channel = 0; channel < 3; ++channel) rgb[channel] = pixel[channel];
  }
};

// One picture of 8-bit NV12: a plane of luma, and one of (U, V) pairs at half the size, rounded up. Each pair is
// used for its 2 × 2 pixels.
struct Nv12 {
  const unsigned char* luma;
  const unsigned char* chroma;
  long long luma_pitch_bytes, chroma_pitch_bytes;
  int y_offset, y_gain, v_to_r, u_to_g, v_to_g, u_to_b;  // gains in units of 2^-16

  __device__ void read(int row, int column, int* rgb) const {
    const unsigned char* pair = chroma + (row >> 1) * chroma_pitch_bytes + (column & ~1);
    const int y = (luma[row * luma_pitch_bytes + column] - y_offset) * y_gain + (1 << (COLOUR_BITS - 1));
    const int u = pair[0] - 128, v = pair[1] - 128;
    rgb[0] = clipped((y + v * v_to_r) >> COLOUR_BITS);
    rgb[1] = clipped((y + u * u_to_g + v * v_to_g) >> COLOUR_BITS);
    rgb[2] = clipped((y + u * u_to_b) >> COLOUR_BITS);
  }
};

// The filter of one axis, in the layout of the host.
struct Filter {
  const int* table;
  int size;

  __device__ int start(int place) const { return table[place]; }
  __device__ int end(int place) const { return table[place] + table[size + place]; }
  __device__ int weight(int place, int tap) const { return table[(2LL + tap) * size + place]; }
};

// x · scale − shift for each channel.
struct Normalisation {
  float scale[3], shift[3];
};

// Adds to ``sums`` the filtered source along one axis, at the position ``across`` on the other.
template <bool ALONG_ROWS, typename Source>
__device__ void add_filtered(const Source& source, const Filter& filter, int place, int across, int* sums) {
  const int start = filter.start(place), end = filter.end(place);
  for (int at = start; at < end; ++at) {
    int rgb[3];
    source.read(ALONG_ROWS ? at : across, ALONG_ROWS ? across : at, rgb);
    const int weight = filter.weight(place, at - start);
    for (int channel = 0; channel < 3; ++channel) sums[channel] += rgb[channel] * weight;
  }
}

__device__ inline void start_sums(int* sums) {
  for (int channel = 0; channel < 3; ++channel) sums[channel] = 1 << (WEIGHT_BITS - 1);  // rounds
}

// The levels of this thread's pixel. All threads of a block that shows any part of the picture call this.
template <bool ROWS_FIRST, typename Source>
__device__ void resize(const Source& source, const Filter& rows, const Filter& columns, int* levels) {
  // A strip has the tile's width along the first axis, and fills the shared memory along the second.
  constexpr int WIDTH = ROWS_FIRST ? TILE_HEIGHT : TILE_WIDTH, STEP = ROWS_FIRST ? TILE_WIDTH : TILE_HEIGHT;
  constexpr int LENGTH = STRIP_BYTES / 3 / WIDTH;
  __shared__ unsigned char strip[STRIP_BYTES];
  const Filter& first = ROWS_FIRST ? rows : columns;
  const Filter& second = ROWS_FIRST ? columns : rows;
  const int lane_first = ROWS_FIRST ? threadIdx.y : threadIdx.x, lane_second = ROWS_FIRST ? threadIdx.x : threadIdx.y;
  const int tile_second = ROWS_FIRST ? blockIdx.x * TILE_WIDTH : blockIdx.y * TILE_HEIGHT;
  const int place_first = lane_first + (ROWS_FIRST ? blockIdx.y * TILE_HEIGHT : blockIdx.x * TILE_WIDTH);
  const int place_second = tile_second + lane_second;
  const bool is_first_inside = place_first < first.size, is_inside = is_first_inside && place_second < second.size;
  // Neighbouring threads are neighbours in the strip as well.
  const int lane_offset = ROWS_FIRST ? lane_first * 3 * LENGTH : lane_first;
  constexpr int POSITION = ROWS_FIRST ? 1 : 3 * WIDTH, CHANNEL = ROWS_FIRST ? LENGTH : WIDTH;

  start_sums(levels);
  const int source_begin = second.start(tile_second);
  const int source_end = second.end(min(tile_second + STEP, second.size) - 1);
  for (int begin = source_begin; begin < source_end; begin += LENGTH) {
    const int end = min(begin + LENGTH, source_end);
    if (is_first_inside) {
      for (int at = begin + lane_second; at < end; at += STEP) {
        int sums[3];
        start_sums(sums);
        add_filtered<ROWS_FIRST>(source, first, place_first, at, sums);
        for (int channel = 0; channel < 3; ++channel)
          strip[lane_offset + (at - begin) * POSITION + channel * CHANNEL] = clipped(sums[channel] >> WEIGHT_BITS);
      }
    }
    __syncthreads();
    if (is_inside) {
      const int start = second.start(place_second), stop = min(second.end(place_second), end);
      for (int at = max(start, begin); at < stop; ++at) {
        const int weight = second.weight(place_second, at - start);
        for (int channel = 0; channel < 3; ++channel)
          levels[channel] += strip[lane_offset + (at - begin) * POSITION + channel * CHANNEL] * weight;
      }
    }
    __syncthreads();
  }
  for (int channel = 0; channel < 3; ++channel) levels[channel] = clipped(levels[channel] >> WEIGHT_BITS);
}

// Writes (3, bucket_height, bucket_width) at ``target``: the picture at the top left, zeros in the rest.
template <typename Source, typename Number>
__device__ void run(const Source& source, Number* target, int bucket_height, int bucket_width, const Filter& rows,
                    const Filter& columns, bool rows_first, const Normalisation& normalisation) {
  const int first_row = blockIdx.y * TILE_HEIGHT, first_column = blockIdx.x * TILE_WIDTH;
  const int row = first_row + threadIdx.y, column = first_column + threadIdx.x;
  int levels[3] = {0, 0, 0};
  // It is the same for all threads of a block, which __syncthreads requires.
  if (first_row < rows.size && first_column < columns.size) {
    if (rows_first)
      resize<true>(source, rows, columns, levels);
    else
      resize<false>(source, rows, columns, levels);
  }
  if (row >= bucket_height || column >= bucket_width) return;
  const bool shows_picture = row < rows.size && column < columns.size;
  for (int channel = 0; channel < 3; ++channel) {
    const float level = static_cast<float>(levels[channel]);
    const float value = __fsub_rn(__fmul_rn(level, normalisation.scale[channel]), normalisation.shift[channel]);
    store(target + (static_cast<long long>(channel) * bucket_height + row) * bucket_width + column,
          shows_picture ? value : 0.0f);
  }
}

template <typename Number>
__device__ Number* picture_of(Number* target, int bucket_height, int bucket_width) {
  return target + 3LL * blockIdx.z * bucket_height * bucket_width;
}

}  // namespace teso_preprocess

// Grid: tiles along the columns, tiles along the rows, pictures. Block: (TILE_WIDTH, TILE_HEIGHT, 1).
#define TESO_PREPROCESS_OUTPUT                                                                                      \
  int bucket_height, int bucket_width, const int *row_filter, int height, const int *column_filter, int width,     \
      int rows_first, float scale_r, float scale_g, float scale_b, float shift_r, float shift_g, float shift_b
#define TESO_PREPROCESS_RUN(source)                                                                                \
  teso_preprocess::run(source, teso_preprocess::picture_of(target, bucket_height, bucket_width), bucket_height,     \
                       bucket_width, teso_preprocess::Filter{row_filter, height},                                   \
                       teso_preprocess::Filter{column_filter, width}, rows_first != 0,                              \
                       teso_preprocess::Normalisation{{scale_r, scale_g, scale_b}, {shift_r, shift_g, shift_b}})

#define TESO_PREPROCESS_KERNELS(suffix, Number)                                                                     \
  extern "C" __global__ void teso_preprocess_rgb_##suffix(const unsigned char* pictures, long long pitch_bytes,     \
                                                          long long picture_stride_bytes, Number* target,           \
                                                          TESO_PREPROCESS_OUTPUT) {                                 \
    const teso_preprocess::Rgb source{pictures + blockIdx.z * picture_stride_bytes, pitch_bytes};                   \
    TESO_PREPROCESS_RUN(source);                                                                                    \
  }                                                                                                                 \
  extern "C" __global__ void teso_preprocess_nv12_##suffix(                                                         \
      const unsigned char* luma, const unsigned char* chroma, long long luma_pitch_bytes,                           \
      long long chroma_pitch_bytes, long long luma_stride_bytes, long long chroma_stride_bytes, int y_offset,       \
      int y_gain, int v_to_r, int u_to_g, int v_to_g, int u_to_b, Number* target, TESO_PREPROCESS_OUTPUT) {         \
    const teso_preprocess::Nv12 source{luma + blockIdx.z * luma_stride_bytes,                                       \
                                       chroma + blockIdx.z * chroma_stride_bytes,                                   \
                                       luma_pitch_bytes,                                                            \
                                       chroma_pitch_bytes,                                                          \
                                       y_offset,                                                                    \
                                       y_gain,                                                                      \
                                       v_to_r,                                                                      \
                                       u_to_g,                                                                      \
                                       v_to_g,                                                                      \
                                       u_to_b};                                                                     \
    TESO_PREPROCESS_RUN(source);                                                                                    \
  }

TESO_PREPROCESS_KERNELS(float32, float)
TESO_PREPROCESS_KERNELS(float16, unsigned short)
