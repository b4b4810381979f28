// The prompt boxes of VGT AR Sampler keep their height when a preview takes room in the node.
import { app } from '../../scripts/app.js'

const HEIGHT = 80

app.registerExtension({
  name: 'VGT.PromptHeight',
  nodeCreated(node) {
    if (node.comfyClass !== 'VGTARSampler') return
    for (const widget of node.widgets ?? []) {
      if (['prompt', 'negative_prompt'].includes(widget.name) && widget.options) {
        widget.options.getMinHeight = () => HEIGHT
      }
    }
  }
})
