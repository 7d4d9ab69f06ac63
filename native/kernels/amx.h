// Declarations that the files for AMX share.
#pragma once

#include "kernels.h"

namespace medusa {
namespace amx {

// Shapes of the tile registers, as the instruction reads them; 64 bytes per row.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set_rows(int tile, int64_t count) {
    rows[tile] = static_cast<uint8_t>(count);
    row_bytes[tile] = 64;
  }

  // GCC 12 assumes that the instruction reads 8 bytes, and might drop the stores to the others.
  void keep() const { asm volatile("" : : "m"(*this)); }
};

constexpr int kQueryRows = 16;
void attend(const Attention& a, int64_t first, int64_t count, float* scratch);
int64_t attend_floats(int64_t rows, int64_t head_dim);

}  // namespace amx
}  // namespace medusa
