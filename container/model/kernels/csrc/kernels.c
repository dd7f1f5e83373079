/* The compiled kernels: see cpu.py.
 *
 * Numbers are bfloat16 or float32 in memory and float32 in registers. Compiled once for each
 * instruction set. Vectorised sizes are multiples of LANES; cpu.py checks that. A row's result
 * depends on no other row, nor on the thread that computes it.
 */

#include "decoder.h"
#include "encoder.h"

/* Hash of the source that this was compiled from: see build.py. */
const char *source_hash(void) { return SOURCE_HASH; }
